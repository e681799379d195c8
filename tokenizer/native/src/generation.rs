//! `{% generation %}` … `{% endgeneration %}` marks what the assistant said, for training masks. For a prompt the marks
//! mean nothing, so they become a block that always renders, with the same whitespace control.

/// Rewrites the generation tags of `source`; everything else, comments and raw blocks included, stays as it is.
pub fn plain(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = if rest.starts_with("{#") {
            rest.find("#}").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("{%") {
            match Tag::read(rest) {
                Some(tag) if tag.name == "generation" => {
                    tag.write(&mut out, "if true");
                    rest = &rest[tag.len..];
                    continue;
                }
                Some(tag) if tag.name == "endgeneration" => {
                    tag.write(&mut out, "endif");
                    rest = &rest[tag.len..];
                    continue;
                }
                Some(tag) if tag.name == "raw" => raw_block_len(rest, tag.len),
                _ => 2,
            }
        } else {
            1
        };
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out.push_str(rest);
    out
}

/// A block tag that holds one word only.
struct Tag<'a> {
    open: &'a str,
    name: &'a str,
    close: &'a str,
    len: usize,
}

impl<'a> Tag<'a> {
    /// Reads `{%`, an optional sign, a word, an optional sign, `%}` at the start of `text`.
    fn read(text: &'a str) -> Option<Tag<'a>> {
        let body = text.strip_prefix("{%")?;
        let end = body.find("%}")?;
        let mut name = &body[..end];
        let (mut open, mut close) = ("", "");
        if let Some(sign) = name.get(..1).filter(|s| *s == "-" || *s == "+") {
            (open, name) = (sign, &name[1..]);
        }
        if let Some(sign) = name.len().checked_sub(1).and_then(|i| name.get(i..)).filter(|s| *s == "-" || *s == "+") {
            (close, name) = (sign, &name[..name.len() - 1]);
        }
        Some(Tag { open, name: name.trim(), close, len: 2 + end + 2 })
    }

    fn write(&self, out: &mut String, statement: &str) {
        out.extend(["{%", self.open, " ", statement, " ", self.close, "%}"]);
    }
}

/// Length of a raw block whose opening tag is `open_len` long, its end tag included (or all of the text).
fn raw_block_len(text: &str, open_len: usize) -> usize {
    let mut at = open_len;
    while let Some(next) = text[at..].find("{%") {
        at += next;
        match Tag::read(&text[at..]) {
            Some(tag) if tag.name == "endraw" => return at + tag.len,
            _ => at += 2,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn rewrites_only_generation_tags() {
        for (source, want) in [
            ("a{% generation %}b{% endgeneration %}c", "a{% if true %}b{% endif %}c"),
            ("{%- generation -%} x {%+ endgeneration +%}", "{%- if true -%} x {%+ endif +%}"),
            ("{%generation%}{%endgeneration%}", "{% if true %}{% endif %}"),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            ("{% raw %}{% generation %}{% endraw %}{% generation %}", "{% raw %}{% generation %}{% endraw %}{% if true %}"),
            ("{% set generation = 1 %}{{ generation }}", "{% set generation = 1 %}{{ generation }}"),
            ("{%", "{%"),
            ("{%-%}{%é%}", "{%-%}{%é%}"),
            ("{% raw %}{%", "{% raw %}{%"),
        ] {
            assert_eq!(plain(source), want, "{source}");
        }
    }
}
