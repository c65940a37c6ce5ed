//! What came over the serial line, by the marks that `init` sets.

/// Everything that a machine said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Transcript {
    /// How its kernel calls itself.
    pub(crate) kernel: Option<String>,
    parts: Vec<Part>,
    /// Whether it came to its end.
    pub(crate) done: bool,
}

/// One command of `init`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// `None` when the machine stopped in its middle.
    pub(crate) code: Option<i32>,
}

impl Transcript {
    pub(crate) fn parse(text: &str) -> Self {
        let mut transcript = Self::default();
        let mut on_stderr = false;
        for line in text.lines().map(|line| line.trim_end_matches('\r')) {
            let mark = line
                .strip_prefix("@@ ")
                .map(|mark| mark.split_once(' ').unwrap_or((mark, "")));
            match (mark, transcript.parts.last_mut()) {
                (Some(("kernel", release)), _) => transcript.kernel = Some(release.to_owned()),
                (Some(("part", name)), _) => {
                    on_stderr = false;
                    transcript.parts.push(Part {
                        name: name.to_owned(),
                        ..Part::default()
                    });
                }
                (Some(("stderr", _)), _) => on_stderr = true,
                (Some(("end", code)), Some(part)) => part.code = code.parse().ok(),
                (Some(("done", _)), _) => transcript.done = true,
                (None, Some(part)) if part.code.is_none() => {
                    let stream = if on_stderr {
                        &mut part.stderr
                    } else {
                        &mut part.stdout
                    };
                    stream.push_str(line);
                    stream.push('\n');
                }
                _ => {}
            }
        }
        transcript
    }

    pub(crate) fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_divide_what_was_said() {
        let text = "early words\r\n@@ kernel 5.10.0\r\n@@ part a b\r\nx;y 1\r\n@@ stderr\r\nlost: 0\r\n@@ end 0\r\nnoise\r\n@@ part c\r\nz 2\r\n";
        let transcript = Transcript::parse(text);
        assert_eq!(transcript.kernel.as_deref(), Some("5.10.0"));
        assert!(!transcript.done);
        let part = transcript.part("a b").unwrap();
        assert_eq!(
            (part.stdout.as_str(), part.stderr.as_str(), part.code),
            ("x;y 1\n", "lost: 0\n", Some(0))
        );
        assert_eq!(transcript.part("c").unwrap().code, None);
        assert!(Transcript::parse("@@ done").done);
    }
}
