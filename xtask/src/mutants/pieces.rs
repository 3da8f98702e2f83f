//! Where the bodies of functions are in a source file.

/// The file in pieces that make it up in order: what lies between, a body, what lies between, and so
/// on. A body has its braces. Left out are bodies in bodies, and those of `const fn` and of functions
/// that return `impl Trait`.
pub fn pieces(text: &str) -> Vec<&str> {
    let mut scan = Scan { text, at: 0 };
    let mut pieces = Vec::new();
    let (mut done, mut is_const) = (0, false);
    while let Some(token) = scan.next() {
        if token == "fn" && scan.peek().is_some_and(is_name) {
            let header = scan.at;
            let Some(open) = scan.body() else { continue };
            let returns_impl = text[header..open].contains("-> impl ");
            scan.at = open;
            scan.past_braces();
            if !is_const && !returns_impl {
                pieces.extend([&text[done..open], &text[open..scan.at]]);
                done = scan.at;
            }
        }
        // `const unsafe fn` is as good as unheard of.
        is_const = token == "const";
    }
    pieces.push(&text[done..]);
    pieces
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Reads tokens as far as they matter here: names, and single characters; comments, strings and
/// characters in quotes are passed by.
struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<&'a str> {
        let Self { text, at } = *self;
        Self { text, at }.next()
    }

    fn next(&mut self) -> Option<&'a str> {
        self.pass_by();
        let rest = self.rest();
        let first = rest.chars().next()?;
        let inside = |c: char| c.is_alphanumeric() || c == '_';
        let len = match inside(first) {
            true => rest.find(|c| !inside(c)).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        self.at += len;
        Some(&rest[..len])
    }

    /// Goes past what is no token.
    fn pass_by(&mut self) {
        loop {
            let rest = self.rest();
            self.at += match rest.as_bytes() {
                [b'/', b'/', ..] => rest.find('\n').unwrap_or(rest.len()),
                [b'/', b'*', ..] => rest.find("*/").map_or(rest.len(), |end| end + 2),
                [b'"', ..] => quoted(rest, '"'),
                [b'r', b'"' | b'#', ..] if raw(rest).is_some() => raw(rest).unwrap_or(1),
                [b'\'', b'\\', ..] => quoted(rest, '\''),
                // A character, not a lifetime.
                [b'\'', ..] if rest.chars().nth(2) == Some('\'') => quoted(rest, '\''),
                [first, ..] if first.is_ascii_whitespace() => 1,
                _ => return,
            };
        }
    }

    /// From a function's name on: where its body begins, if it has one.
    fn body(&mut self) -> Option<usize> {
        let mut depth = 0;
        while let Some(token) = self.next() {
            match token {
                "(" | "[" => depth += 1,
                ")" | "]" => depth -= 1,
                "{" if depth == 0 => return Some(self.at - 1),
                ";" if depth == 0 => return None,
                _ => {}
            }
        }
        None
    }

    /// Goes past the braces that begin here.
    fn past_braces(&mut self) {
        let mut depth = 0;
        while let Some(token) = self.next() {
            match token {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return;
            }
        }
    }
}

/// The length of what is in such quotes, with them.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

/// The length of a raw string, if this is one.
fn raw(text: &str) -> Option<usize> {
    let hashes = text[1..].find(|c| c != '#')?;
    let open = text[1 + hashes..].strip_prefix('"')?;
    let close = format!("\"{}", &text[1..1 + hashes]);
    Some(text.len() - open.len() + open.find(&close)? + close.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_found_and_nothing_else() {
        let text = r##"
            //! fn not { this }
            /* nor fn this() {} */
            const TEXT: &str = "fn nor this() {}";
            const fn zero() -> u32 { 0 }
            trait Odd { fn bare(&self) -> [u8; 3]; fn given(&self) { "}" } }
            fn lifetimes<'a>(c: &'a char) -> bool where u8: Copy { *c == '{' || *c == '\'' }
            fn closures() -> impl Fn() { || {} }
            fn outer(f: fn(u32) -> u32) { fn inner() { 1 } r#"}"#; }
            "##;
        let pieces = pieces(text);
        assert_eq!(pieces.concat(), text);
        let bodies: Vec<_> = pieces.iter().skip(1).step_by(2).collect();
        assert_eq!(
            bodies,
            [
                &r#"{ "}" }"#,
                &r"{ *c == '{' || *c == '\'' }",
                &r##"{ fn inner() { 1 } r#"}"#; }"##
            ]
        );
    }

    #[test]
    fn every_file_of_the_core_comes_apart() {
        let core = crate::step::root().join(super::super::weave::CRATE);
        let files = crate::sources::walk(&core).unwrap();
        let mut bodies = 0;
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let pieces = pieces(&text);
            assert_eq!(pieces.concat(), text);
            for body in pieces.iter().skip(1).step_by(2) {
                assert!(body.starts_with('{') && body.ends_with('}'), "{body}");
                bodies += 1;
            }
        }
        assert!(bodies > 100);
    }
}
