//! Chat templates over minijinja, set up as transformers sets up Jinja2 for them: blocks trimmed, Python's string
//! methods, `tojson`, `raise_exception`, `strftime_now`, loop controls, no autoescape.

use std::fmt;
use std::io;

use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use crate::{generation, python};

/// Steps of the engine that one rendering may take. A chat of a thousand messages takes some ten thousand; a template
/// from a stranger must not be able to hold a server for longer than a moment.
const FUEL: u64 = 20_000_000;

const NAME: &str = "chat_template";

pub enum Failure {
    /// The template called raise_exception with this message.
    Raised(String),
    Other(String),
}

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    pub fn parse(source: &str) -> Result<Self, Failure> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(python::print);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", python::tojson);
        environment.add_function("strftime_now", |format: &str| python::strftime_now(format));
        environment.add_function("raise_exception", raise_exception);
        environment.add_template_owned(NAME, generation::plain(source)).map_err(failure)?;
        Ok(ChatTemplate { environment })
    }

    /// Renders with the variables of a JSON object; more than `max_output` bytes are an error.
    pub fn render(&self, context: &str, max_output: usize) -> Result<String, Failure> {
        let context: Value = serde_json::from_str(context).map_err(|e| Failure::Other(format!("reading the context: {e}")))?;
        let template = self.environment.get_template(NAME).map_err(failure)?;
        let mut out = Bounded { bytes: Vec::new(), limit: max_output, exceeded: false };
        let rendered = template.render_captured_to(context, &mut out).map(drop);
        if out.exceeded {
            return Err(Failure::Other(format!("the rendered prompt is longer than {max_output} bytes")));
        }
        rendered.map_err(failure)?;
        String::from_utf8(out.bytes).map_err(|e| Failure::Other(e.to_string()))
    }
}

/// What raise_exception was called with, carried as the source of minijinja's error.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// The message of raise_exception if that is what went wrong, else the engine's error with its line.
fn failure(error: Error) -> Failure {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref::<Raised>() {
            return Failure::Raised(message.clone());
        }
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    Failure::Other(text)
}

/// Collects the output up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    exceeded: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() > self.limit - self.bytes.len() {
            self.exceeded = true;
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
