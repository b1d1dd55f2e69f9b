//! From text to nodes.

use serde_json::Value;

/// Nesting of brackets and blocks that is followed: beyond it the parser's own stack would be at risk.
const DEPTH: usize = 100;

/// A piece of a template.
#[derive(Debug)]
pub(super) enum Node {
    /// Text as it is.
    Text(String),
    /// The value of a pipeline.
    Show(Pipeline),
    /// `{{$x := ...}}` and `{{$x = ...}}`.
    Set {
        name: String,
        is_new: bool,
        value: Pipeline,
    },
    /// `{{if}}`, with its `{{else}}`.
    If(Pipeline, Vec<Node>, Vec<Node>),
    /// `{{with}}`, with its `{{else}}`.
    With(Pipeline, Vec<Node>, Vec<Node>),
    /// `{{range}}`, with its `{{else}}`.
    Range {
        /// Variables for the index or key, and for the element.
        names: Vec<String>,
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Calls, each of which gets the value of the one before as its last argument.
pub(super) type Pipeline = Vec<Call>;

/// A value, or a function or field with arguments.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) head: Term,
    pub(super) arguments: Vec<Term>,
}

/// What a pipeline is made of.
#[derive(Debug)]
pub(super) enum Term {
    /// `.A.B`; empty is `.` itself.
    Field(Vec<String>),
    /// `$x.A`; an empty name is `$`.
    Variable(String, Vec<String>),
    /// A string, number, true, false or nil.
    Literal(Value),
    /// A function by its name.
    Function(String),
    /// In brackets, and a field of that.
    Group(Pipeline, Vec<String>),
}

/// Parses a whole template.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, String> {
    let mut parts = parts(text)?.into_iter();
    let (nodes, end) = block(&mut parts, 0)?;
    match end {
        End::Text => Ok(nodes),
        End::Closed => Err("{{end}} ends nothing".to_owned()),
        End::Else(_) => Err("{{else}} belongs to nothing".to_owned()),
    }
}

/// What a template shows: the fields of each of its columns, which tabs part.
pub(super) fn columns(nodes: &[Node]) -> Vec<String> {
    let mut columns = vec![Vec::new()];
    for node in nodes {
        match node {
            Node::Text(text) => columns.extend(text.matches('\t').map(|_| Vec::new())),
            Node::Show(pipeline) => {
                let terms = pipeline
                    .iter()
                    .flat_map(|call| std::iter::once(&call.head).chain(&call.arguments));
                let fields = terms.filter_map(|term| match term {
                    Term::Field(path) => path.last().cloned(),
                    _ => None,
                });
                if let Some(column) = columns.last_mut() {
                    column.extend(fields);
                }
            }
            _ => {}
        }
    }
    columns.into_iter().map(|fields| fields.join(" ")).collect()
}

enum Part {
    Text(String),
    Action(String),
}

/// Cuts the text at its actions; `{{-` and `-}}` take the white space beside them along.
fn parts(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut trims = false;
    while let Some((before, after)) = rest.split_once("{{") {
        let end = end_of_action(after).ok_or("a '{{' has no '}}'")?;
        let action = &after[..end];
        let before = if trims { before.trim_start() } else { before };
        let trims_before = action.starts_with("- ") || action.starts_with("-\t") || action == "-";
        parts.push(Part::Text(
            if trims_before { before.trim_end() } else { before }.to_owned(),
        ));
        let action = if trims_before { &action[1..] } else { action };
        trims = action.ends_with(" -") || action.ends_with("\t-");
        let action = if trims { &action[..action.len() - 1] } else { action }.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            parts.push(Part::Action(action.to_owned()));
        }
        rest = &after[end + 2..];
    }
    parts.push(Part::Text(if trims { rest.trim_start() } else { rest }.to_owned()));
    Ok(parts)
}

/// Where the `}}` is that is in no string.
fn end_of_action(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut quote, mut at) = (None, 0);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') => return Some(at),
            (None, c @ (b'"' | b'`')) => quote = Some(c),
            (Some(b'"'), b'\\') => at += 1,
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
        at += 1;
    }
    // A string without an end is told as such.
    quote.and_then(|_| text.find("}}"))
}

enum End {
    Text,
    Closed,
    /// What stands behind `else`: nothing, or another `if`.
    Else(String),
}

fn block(parts: &mut std::vec::IntoIter<Part>, depth: usize) -> Result<(Vec<Node>, End), String> {
    if depth > DEPTH {
        return Err("it is too deep".to_owned());
    }
    let mut nodes = Vec::new();
    while let Some(part) = parts.next() {
        let action = match part {
            Part::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Part::Action(action) => action,
        };
        let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
        match word {
            "end" => return Ok((nodes, End::Closed)),
            "else" => return Ok((nodes, End::Else(rest.trim().to_owned()))),
            "if" | "with" | "range" => nodes.push(control(word, rest, parts, depth)?),
            _ => nodes.push(simple(&action)?),
        }
    }
    Ok((nodes, End::Text))
}

fn control(word: &str, rest: &str, parts: &mut std::vec::IntoIter<Part>, depth: usize) -> Result<Node, String> {
    let unended = || format!("a {{{{{word}}}}} has no {{{{end}}}}");
    let (body, end) = block(parts, depth + 1)?;
    let otherwise = match end {
        End::Text => return Err(unended()),
        End::Closed => Vec::new(),
        End::Else(next) if next.is_empty() => match block(parts, depth + 1)? {
            (otherwise, End::Closed) => otherwise,
            _ => return Err(unended()),
        },
        End::Else(next) => match next.split_once(char::is_whitespace) {
            Some(("if", rest)) => vec![control("if", rest, parts, depth + 1)?],
            _ => return Err(format!("{{{{else {next}}}}} is not known")),
        },
    };
    if word == "range" {
        let (names, over) = match rest.split_once(":=") {
            Some((names, over)) => {
                let names = names
                    .split(',')
                    .map(|name| variable(name.trim()))
                    .collect::<Result<Vec<_>, _>>()?;
                (names, over)
            }
            None => (Vec::new(), rest),
        };
        return Ok(Node::Range {
            names,
            over: pipeline(over)?,
            body,
            otherwise,
        });
    }
    let condition = pipeline(rest)?;
    Ok(match word {
        "if" => Node::If(condition, body, otherwise),
        _ => Node::With(condition, body, otherwise),
    })
}

fn variable(text: &str) -> Result<String, String> {
    let name = text
        .strip_prefix('$')
        .ok_or_else(|| format!("'{text}' is no variable"))?;
    Ok(name.to_owned())
}

fn simple(action: &str) -> Result<Node, String> {
    if action.starts_with('$')
        && let Some((name, value)) = action.split_once('=')
        && !name.trim_end_matches([':', ' ']).contains(['.', ' ', '|', '"'])
    {
        let is_new = name.ends_with(':');
        return Ok(Node::Set {
            name: variable(name.trim_end_matches(':').trim())?,
            is_new,
            value: pipeline(value)?,
        });
    }
    pipeline(action).map(Node::Show)
}

fn pipeline(text: &str) -> Result<Pipeline, String> {
    let tokens = tokens(text)?;
    let mut at = 0;
    let pipeline = calls(&tokens, &mut at, 0)?;
    match tokens.get(at) {
        None => Ok(pipeline),
        Some(_) => Err(format!("'{text}': a ')' opens nowhere")),
    }
}

#[derive(Debug, PartialEq)]
enum Token {
    Open,
    /// With the field of what is in the brackets.
    Close(Vec<String>),
    Pipe,
    Term(Word),
}

#[derive(Debug, PartialEq, Clone)]
enum Word {
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Literal(Value),
    Function(String),
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '(' => {
                tokens.push(Token::Open);
                1
            }
            ')' => {
                let length = 1 + word_length(&rest[1..]);
                tokens.push(Token::Close(path(&rest[1..length])));
                length
            }
            '|' => {
                tokens.push(Token::Pipe);
                1
            }
            '"' | '`' => {
                let (value, length) = string(rest, first)?;
                tokens.push(Token::Term(Word::Literal(Value::String(value))));
                length
            }
            _ => {
                let length = word_length(rest).max(first.len_utf8());
                tokens.push(Token::Term(word(&rest[..length])?));
                length
            }
        };
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '|' | '"' | '`'))
        .unwrap_or(text.len())
}

fn path(text: &str) -> Vec<String> {
    text.split('.')
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

fn word(text: &str) -> Result<Word, String> {
    if text.starts_with('.') {
        return Ok(Word::Field(path(text)));
    }
    if let Some(rest) = text.strip_prefix('$') {
        let (name, fields) = rest.split_once('.').unwrap_or((rest, ""));
        return Ok(Word::Variable(name.to_owned(), path(fields)));
    }
    Ok(match text {
        "true" => Word::Literal(Value::Bool(true)),
        "false" => Word::Literal(Value::Bool(false)),
        "nil" => Word::Literal(Value::Null),
        _ if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
            let number: serde_json::Number = text.parse().map_err(|_| format!("'{text}' is no number"))?;
            Word::Literal(Value::Number(number))
        }
        _ => Word::Function(text.to_owned()),
    })
}

/// A string and its length with quotes.
fn string(text: &str, quote: char) -> Result<(String, usize), String> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Ok((value, at + 1)),
            '\\' if quote == '"' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, other)) => value.push(other),
                None => break,
            },
            c => value.push(c),
        }
    }
    Err(format!("the string {text} is not closed"))
}

fn calls(tokens: &[Token], at: &mut usize, depth: usize) -> Result<Pipeline, String> {
    if depth > DEPTH {
        return Err("it is too deep".to_owned());
    }
    let mut pipeline = Vec::new();
    loop {
        let mut terms = Vec::new();
        loop {
            match tokens.get(*at) {
                Some(Token::Term(word)) => {
                    terms.push(term(word.clone()));
                    *at += 1;
                }
                Some(Token::Open) => {
                    *at += 1;
                    let inner = calls(tokens, at, depth + 1)?;
                    let Some(Token::Close(fields)) = tokens.get(*at) else {
                        return Err("a '(' is not closed".to_owned());
                    };
                    terms.push(Term::Group(inner, fields.clone()));
                    *at += 1;
                }
                Some(Token::Pipe | Token::Close(_)) | None => break,
            }
        }
        if terms.is_empty() {
            return Err("an action is empty".to_owned());
        }
        let head = terms.remove(0);
        pipeline.push(Call { head, arguments: terms });
        match tokens.get(*at) {
            Some(Token::Pipe) => *at += 1,
            _ => return Ok(pipeline),
        }
    }
}

fn term(word: Word) -> Term {
    match word {
        Word::Field(path) => Term::Field(path),
        Word::Variable(name, path) => Term::Variable(name, path),
        Word::Literal(value) => Term::Literal(value),
        Word::Function(name) => Term::Function(name),
    }
}
