//! Templates for `--format`, in the notation of Go's text/template that users of docker and podman write: fields, pipelines,
//! `range`, `if`, `with`, variables and the functions that docker has.
//!
//! Evaluated over JSON. Names of fields match whatever the case and underscores, so that `.State.ExitCode` finds `exit_code`.
//! The one library for it has had no release since 2021 and needs its values in types of its own.

mod eval;
mod functions;
mod parse;

use serde_json::Value;
use zmachine_spec::{Class, Failure};

/// A parsed template.
#[derive(Debug)]
pub struct Template(Vec<parse::Node>);

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// [`Class::Usage`], with what is wrong and where.
    pub fn parse(text: &str) -> Result<Template, Failure> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        parse::parse(&text).map(Template).map_err(|why| wrong(&text, &why))
    }

    /// The text for a value.
    ///
    /// # Errors
    /// [`Class::Usage`] when the value has no such field, or a function gets what it cannot use.
    pub fn render(&self, value: &Value) -> Result<String, Failure> {
        eval::render(&self.0, value).map_err(|why| wrong("", &why))
    }

    /// The fields that it shows one after the other, for the header of a table.
    pub fn columns(&self) -> Vec<String> {
        parse::columns(&self.0)
    }
}

fn wrong(text: &str, why: &str) -> Failure {
    let message = match text.is_empty() {
        true => format!("the template of --format: {why}"),
        false => format!("the template '{text}': {why}"),
    };
    Failure::new(Class::Usage, message).hint("a template is as docker's: '{{.Names}} {{.Status}}', or the word 'json'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rendered(template: &str, value: &Value) -> Result<String, String> {
        let template = Template::parse(template).map_err(|failure| failure.to_string())?;
        template.render(value).map_err(|failure| failure.to_string())
    }

    #[test]
    fn templates_that_users_of_docker_write() {
        let value = json!({
            "name": "web", "state": {"phase": "running", "exit_code": 3}, "Labels": {"a.b": "1", "tier": "web"},
            "ports": ["80/tcp", "443/tcp"], "networks": {"front": {"ip": "10.0.0.2"}, "back": {"ip": "10.0.1.2"}},
            "empty": [], "none": null, "yes": true, "html": "<a> & \"b\"",
        });
        for (template, text) in [
            ("{{.Name}}", "web"),
            ("{{.State.ExitCode}}", "3"),
            ("{{ .name }}\\t{{.State.phase}}", "web\trunning"),
            ("{{json .Ports}}", r#"["80/tcp","443/tcp"]"#),
            ("{{json .}}{{/* nothing */}}", &serde_json::to_string(&value).unwrap()),
            (r#"{{index .Labels "a.b"}}-{{index .Ports 1}}"#, "1-443/tcp"),
            (r#"{{.Labels "tier"}}"#, "web"),
            ("{{range .Ports}}[{{.}}]{{end}}", "[80/tcp][443/tcp]"),
            ("{{range $i, $p := .Ports}}{{$i}}={{$p}};{{end}}", "0=80/tcp;1=443/tcp;"),
            (
                "{{range $n, $c := .Networks}}{{$n}} {{$c.IP}} {{$.Name}};{{end}}",
                "back 10.0.1.2 web;front 10.0.0.2 web;",
            ),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            (
                "{{if .Yes}}y{{else}}n{{end}}{{if .None}}y{{else if .Empty}}e{{else}}n{{end}}",
                "yn",
            ),
            ("{{with .State}}{{.Phase}}{{end}}{{with .None}}x{{end}}", "running"),
            ("{{if and .Yes (eq .Name \"web\")}}both{{end}}", "both"),
            ("{{if or .None (ne .State.ExitCode 0)}}bad{{end}}", "bad"),
            ("{{len .Ports}} {{.Name | upper | printf \"%s!\"}}", "2 WEB!"),
            ("{{join .Ports \",\"}} {{title .Name}}", "80/tcp,443/tcp Web"),
            (
                "{{printf \"%-5s|%5d|%q|%v\" .Name .State.ExitCode .Name .Yes}}",
                "web  |    3|\"web\"|true",
            ),
            ("a {{- .Name -}} b", "awebb"),
            ("{{.Html}} {{println .Name}}", "<a> & \"b\" web\n"),
            ("{{$x := .Name}}{{$x}}{{$x = \"o\"}}{{$x}}", "webo"),
            (
                "{{not .Yes}} {{gt .State.ExitCode 2}} {{.None}}",
                "false true <no value>",
            ),
            ("{{.Ports}} {{.Labels}}", "[80/tcp 443/tcp] map[a.b:1 tier:web]"),
            (
                "{{slice .Name 1 2}}{{split .Name \"e\"}}{{truncate .Name 2}}",
                "e[w b]we",
            ),
        ] {
            assert_eq!(rendered(template, &value).as_deref(), Ok(text), "{template}");
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        let value = json!({"name": "web", "list": [1]});
        for (template, part) in [
            ("{{.Nmae}}", "there is no field 'Nmae'; there are: list, name"),
            ("{{.Name", "a '{{' has no '}}'"),
            ("{{if .Name}}", "has no {{end}}"),
            ("{{end}}", "{{end}} ends nothing"),
            ("{{frob .Name}}", "there is no function 'frob'"),
            ("{{index .List 7}}", "has no element 7"),
            ("{{$x}}", "there is no variable '$x'"),
            ("{{len 5}}", "len: a number has no length"),
            ("{{.Name.Sub}}", "'Sub' of a string"),
            ("{{\"abc}}", "is not closed"),
            ("{{(.Name}}", "is not closed"),
            ("{{}}", "is empty"),
            ("{{else}}", "belongs to nothing"),
            ("{{printf \"%z\" 1}}", "%z"),
            ("{{range .Name}}{{end}}", "range"),
        ] {
            let error = rendered(template, &value).unwrap_err();
            assert!(error.contains(part), "{template}: {error}");
        }
        let deep = format!("{{{{{}.Name{}}}}}", "(".repeat(10_000), ")".repeat(10_000));
        assert!(rendered(&deep, &value).unwrap_err().contains("deep"));
    }

    #[test]
    fn the_columns_of_a_table_are_its_fields() {
        let template = Template::parse("{{.Names}}\\t{{.Status}} {{upper .Image}}\\t{{json .Ports}}").unwrap();
        assert_eq!(template.columns(), ["Names", "Status Image", "Ports"]);
    }
}
