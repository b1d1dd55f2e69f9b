//! From nodes and a value to text.

use serde_json::Value;

use super::functions::{call, is_true, show};
use super::parse::{Call, Node, Pipeline, Term};

/// What is visible where a node stands.
struct Scope<'a> {
    root: &'a Value,
    variables: Vec<(String, Value)>,
    out: String,
}

/// The text of a template.
pub(super) fn render(nodes: &[Node], root: &Value) -> Result<String, String> {
    let mut scope = Scope {
        root,
        variables: Vec::new(),
        out: String::new(),
    };
    scope.block(nodes, root)?;
    Ok(scope.out)
}

impl Scope<'_> {
    /// What a block declares is gone after it.
    fn block(&mut self, nodes: &[Node], dot: &Value) -> Result<(), String> {
        let known = self.variables.len();
        for node in nodes {
            self.node(node, dot)?;
        }
        self.variables.truncate(known);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<(), String> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Show(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                self.out.push_str(&show(&value));
            }
            Node::Set { name, is_new, value } => {
                let value = self.pipeline(value, dot)?;
                match self.variables.iter_mut().rev().find(|(known, _)| known == name) {
                    Some(known) if !is_new => known.1 = value,
                    None if !is_new => return Err(format!("there is no variable '${name}'")),
                    _ => self.variables.push((name.clone(), value)),
                }
            }
            Node::If(condition, then, otherwise) => {
                let is_true = is_true(&self.pipeline(condition, dot)?);
                self.block(if is_true { then } else { otherwise }, dot)?;
            }
            Node::With(value, then, otherwise) => {
                let value = self.pipeline(value, dot)?;
                match is_true(&value) {
                    true => self.block(then, &value)?,
                    false => self.block(otherwise, dot)?,
                }
            }
            Node::Range {
                names,
                over,
                body,
                otherwise,
            } => {
                let elements = match self.pipeline(over, dot)? {
                    Value::Array(all) => all.into_iter().enumerate().map(|(i, v)| (Value::from(i), v)).collect(),
                    Value::Object(all) => all.into_iter().map(|(k, v)| (Value::String(k), v)).collect(),
                    Value::Null => Vec::new(),
                    other => return Err(format!("range goes over lists and objects, not over {}", show(&other))),
                };
                if elements.is_empty() {
                    return self.block(otherwise, dot);
                }
                for (key, element) in elements {
                    let known = self.variables.len();
                    match names.as_slice() {
                        [] => {}
                        [one] => self.variables.push((one.clone(), element.clone())),
                        [first, second, ..] => {
                            self.variables.push((first.clone(), key));
                            self.variables.push((second.clone(), element.clone()));
                        }
                    }
                    self.block(body, &element)?;
                    self.variables.truncate(known);
                }
            }
        }
        Ok(())
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let mut piped: Option<Value> = None;
        for call in pipeline {
            piped = Some(self.call(call, piped, dot)?);
        }
        Ok(piped.unwrap_or_default())
    }

    fn call(&self, one: &Call, piped: Option<Value>, dot: &Value) -> Result<Value, String> {
        let arguments = one.arguments.iter().map(|term| self.term(term, dot));
        let mut arguments = arguments.collect::<Result<Vec<_>, _>>()?;
        arguments.extend(piped);
        if let Term::Function(name) = &one.head {
            return call(name, &arguments);
        }
        match (&one.head, arguments.len()) {
            (head, 0) => self.term(head, dot),
            // A method of docker's rows: `.Label "tier"`.
            (Term::Field(_), 1) => {
                let fields = self.term(&one.head, dot)?;
                match fields {
                    Value::Object(_) => call("index", &[fields, arguments.remove(0)]),
                    _ => Err("only functions take arguments".to_owned()),
                }
            }
            _ => Err("only functions take arguments".to_owned()),
        }
    }

    fn term(&self, term: &Term, dot: &Value) -> Result<Value, String> {
        match term {
            Term::Field(path) => field(dot, path),
            Term::Variable(name, path) if name.is_empty() => field(self.root, path),
            Term::Variable(name, path) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                let (_, value) = known.ok_or_else(|| format!("there is no variable '${name}'"))?;
                field(value, path)
            }
            Term::Literal(value) => Ok(value.clone()),
            Term::Function(name) => call(name, &[]),
            Term::Group(pipeline, path) => field(&self.pipeline(pipeline, dot)?, path),
        }
    }
}

/// A field of a value, whatever the case and underscores of its name.
fn field(value: &Value, path: &[String]) -> Result<Value, String> {
    let mut value = value;
    for name in path {
        value = match value {
            Value::Object(fields) => {
                let plain = |name: &str| name.replace('_', "").to_lowercase();
                let found = fields.get(name).or_else(|| {
                    let wanted = plain(name);
                    fields
                        .iter()
                        .find(|(key, _)| plain(key) == wanted)
                        .map(|(_, value)| value)
                });
                found.ok_or_else(|| {
                    let mut known: Vec<&str> = fields.keys().map(String::as_str).collect();
                    known.sort_unstable();
                    format!("there is no field '{name}'; there are: {}", known.join(", "))
                })?
            }
            Value::Null => return Ok(Value::Null),
            Value::String(_) => return Err(format!("there is no '{name}' of a string")),
            _ => return Err(format!("there is no '{name}' of {}", show(value))),
        };
    }
    Ok(value.clone())
}
