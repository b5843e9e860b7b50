//! Text and positions as HTML and SVG want them.

use std::fmt::{self, Display, Formatter, Write};

/// Displays its content with every character escaped that markup or a quoted attribute could take for its own.
pub struct Text<T>(pub T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut Formatter<'b>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| match c {
            '&' => self.0.write_str("&amp;"),
            '<' => self.0.write_str("&lt;"),
            '>' => self.0.write_str("&gt;"),
            '"' => self.0.write_str("&quot;"),
            '\'' => self.0.write_str("&#39;"),
            c => self.0.write_char(c),
        })
    }
}

/// A share in [0, 1] as `12.345%`.
pub struct Percent(pub f64);

impl Display for Percent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}%", self.0 * 100.0)
    }
}

/// A figure with its heading and, below, what it shows.
pub fn figure(id: &str, heading: &str, caption: &str, content: &str) -> String {
    format!(
        "<section id=\"{id}\" aria-labelledby=\"{id}-heading\">\n<h2 id=\"{id}-heading\">{heading}</h2>\n\
         <figure>\n{content}<figcaption>{caption}</figcaption>\n</figure>\n</section>\n"
    )
}

/// A legend of (class, word) pairs.
pub fn legend(entries: &[(&str, &str)]) -> String {
    let entry = |(class, word): &(&str, &str)| format!("<li><i class=\"{class}\"></i>{word}</li>");
    format!("<ul class=\"legend\">{}</ul>\n", entries.iter().map(entry).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_element_or_attribute() {
        assert_eq!(Text("<b a='1' c=\"2\">&").to_string(), "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;");
        assert_eq!(Text(format_args!("{}-{}", 1, "<")).to_string(), "1-&lt;");
    }
}
