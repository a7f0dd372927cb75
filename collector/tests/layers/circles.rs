//! Finds modules that import each other, directly or by way of others.
//!
//! Modules are compared with their siblings, at every level: what a module imports counts for the
//! modules around it, up to the one that both sides are part of. A module and one inside it may know
//! each other. A name is followed through `pub use` to the module that has it. Code under
//! `#[cfg(test)]` may import anything.
//!
//! The text alone is read, so a method that is called on a value is not seen: a method of another
//! module's type belongs beside the type, or where nothing below it calls it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::Path,
};

/// The names from the crate's root to a module; the root's has none.
type Place = Vec<String>;

/// A word, `::`, or another character.
#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Separator,
    Other(char),
}

impl Token {
    fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            _ => None,
        }
    }

    fn is(&self, other: char) -> bool {
        *self == Self::Other(other)
    }
}

/// How many characters a literal or comment at the start has; 0 if there is none.
fn skipped(text: &[char]) -> usize {
    let until = |from: usize, end: &[char]| {
        let rest = text.get(from..).unwrap_or_default();
        let at = rest.windows(end.len()).position(|found| found == end);
        at.map_or(text.len(), |at| from + at + end.len())
    };
    let quoted = |from: usize| {
        let mut at = from;
        while at < text.len() && text[at] != '"' {
            at += if text[at] == '\\' { 2 } else { 1 };
        }
        (at + 1).min(text.len())
    };
    match *text {
        ['/', '/', ..] => until(2, &['\n']),
        ['/', '*', ..] => {
            let (mut depth, mut at) = (1, 2);
            while depth > 0 && at < text.len() {
                let step = match text[at..] {
                    ['/', '*', ..] => (1, 2),
                    ['*', '/', ..] => (-1, 2),
                    _ => (0, 1),
                };
                depth += step.0;
                at += step.1;
            }
            at
        }
        ['"', ..] => quoted(1),
        ['b' | 'c', '"', ..] => quoted(2),
        ['r', '"' | '#', ..] | ['b' | 'c', 'r', '"' | '#', ..] => {
            let start = if text[0] == 'r' { 1 } else { 2 };
            let hashes = text[start..].iter().take_while(|c| **c == '#').count();
            if text.get(start + hashes) != Some(&'"') {
                return 0;
            }
            let mut end = vec!['"'];
            end.resize(hashes + 1, '#');
            until(start + hashes + 1, &end)
        }
        // A lifetime is none of these.
        ['\'', '\\', _, ..] => until(3, &['\'']),
        ['\'', _, '\'', ..] => 3,
        _ => 0,
    }
}

/// The tokens of a text, without comments and literals.
fn tokens(text: &str) -> Vec<Token> {
    let text: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let literal = skipped(&text[at..]);
        let is_word = |c: &&char| c.is_alphanumeric() || **c == '_';
        let word: String = text[at..].iter().take_while(is_word).collect();
        if literal > 0 {
            at += literal;
        } else if !word.is_empty() {
            at += word.chars().count();
            tokens.push(Token::Word(word));
        } else if text[at..].starts_with(&[':', ':']) {
            at += 2;
            tokens.push(Token::Separator);
        } else {
            if !text[at].is_whitespace() {
                tokens.push(Token::Other(text[at]));
            }
            at += 1;
        }
    }
    tokens
}

/// The number of tokens of the item at the start: up to its `;`, or the end of its block.
fn item(tokens: &[Token]) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Other('{' | '(' | '[') => depth += 1,
            Token::Other('}') if depth == 1 => return at + 1,
            // The end of what it is in: a member, which nothing else ends.
            Token::Other('}') if depth == 0 => return at,
            Token::Other('}' | ')' | ']') => depth -= 1,
            Token::Other(';') if depth == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// What stands before an item that only tests have.
fn for_tests() -> Vec<Token> {
    tokens("#[cfg(test)]")
}

/// A module as its text shows it.
#[derive(Debug, Default)]
struct Module {
    /// Modules that it declares.
    children: BTreeSet<String>,
    /// Names that it has by `use`, and their paths.
    names: BTreeMap<String, Vec<String>>,
    /// Modules whose names it has, all of them.
    globs: Vec<Vec<String>>,
    /// Names that it defines.
    items: BTreeSet<String>,
    /// Every path in it.
    paths: Vec<Vec<String>>,
}

impl Module {
    /// Reads a module's tokens. Modules that are written within it are pushed to `inner`.
    fn read(tokens: &[Token], inner: &mut Vec<(String, Self)>) -> Self {
        let mut module = Self::default();
        let mut at = 0;
        while at < tokens.len() {
            let rest = &tokens[at..];
            let for_tests = for_tests();
            at += if rest.starts_with(&for_tests) {
                // Further attributes are part of the item.
                let mut from = for_tests.len();
                while rest.get(from).is_some_and(|token| token.is('#')) {
                    let end = rest[from..].iter().position(|token| token.is(']'));
                    from += end.map_or(1, |end| end + 1);
                }
                from + item(&rest[from..])
            } else {
                module.step(rest, at.checked_sub(1).map(|at| &tokens[at]), inner)
            };
        }
        module
    }

    /// Reads what is at the start of the tokens. Returns how many tokens it has.
    fn step(
        &mut self,
        tokens: &[Token],
        before: Option<&Token>,
        inner: &mut Vec<(String, Self)>,
    ) -> usize {
        let Some(word) = tokens[0].word() else {
            return 1;
        };
        let next = tokens.get(1).and_then(Token::word);
        match (word, next) {
            ("mod", Some(name)) if tokens.get(2).is_some_and(|token| token.is(';')) => {
                self.children.insert(name.to_owned());
                return 3;
            }
            ("mod", Some(name)) if tokens.get(2).is_some_and(|token| token.is('{')) => {
                self.children.insert(name.to_owned());
                let end = item(tokens);
                let mut further = Vec::new();
                let module = Self::read(&tokens[3..end - 1], &mut further);
                inner.push((name.to_owned(), module));
                let below = further.into_iter();
                inner.extend(below.map(|(place, module)| (format!("{name}::{place}"), module)));
                return end;
            }
            // Not the `use<'a>` of a type.
            ("use", _) if tokens.get(1).is_some_and(|token| !token.is('<')) => {
                let end = item_of_use(tokens);
                self.tree(&mut &tokens[1..end], &mut Vec::new());
                return end;
            }
            (
                "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "union",
                Some(name),
            ) => {
                self.items.insert(name.to_owned());
                return 1;
            }
            _ => {}
        }
        if before == Some(&Token::Separator) {
            return 1;
        }
        let mut path = vec![word.to_owned()];
        let mut end = 1;
        while tokens.get(end) == Some(&Token::Separator)
            && let Some(word) = tokens.get(end + 1).and_then(Token::word)
        {
            path.push(word.to_owned());
            end += 2;
        }
        if path.len() > 1 {
            self.paths.push(path);
        }
        end
    }

    /// Reads a tree of a `use`: names after `prefix`.
    fn tree(&mut self, tokens: &mut &[Token], prefix: &mut Vec<String>) {
        let depth = prefix.len();
        while let Some((first, rest)) = tokens.split_first() {
            *tokens = rest;
            match first {
                Token::Word(word) if word == "as" => {
                    if let Some(alias) = rest.first().and_then(Token::word) {
                        let path = prefix.clone();
                        self.names.insert(alias.to_owned(), path);
                        *tokens = &rest[1..];
                    }
                    prefix.truncate(depth);
                }
                Token::Word(word) => {
                    prefix.push(word.clone());
                    let goes_on = rest
                        .first()
                        .is_some_and(|next| *next == Token::Separator || next.word().is_some());
                    if !goes_on {
                        self.name(prefix);
                        prefix.truncate(depth);
                    }
                }
                Token::Other('{') => {
                    self.tree(tokens, prefix);
                    prefix.truncate(depth);
                }
                Token::Other('}') => return,
                Token::Other('*') => {
                    self.paths.push(prefix.clone());
                    self.globs.push(prefix.clone());
                    prefix.truncate(depth);
                }
                _ => {}
            }
        }
    }

    fn name(&mut self, path: &[String]) {
        let mut path = path.to_vec();
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        self.paths.push(path.clone());
        if let Some(last) = path.last().cloned() {
            // A macro that is made visible is the module's own.
            if path.len() > 1 {
                self.names.insert(last, path);
            } else {
                self.items.insert(last);
            }
        }
    }
}

/// The number of tokens of a `use`.
fn item_of_use(tokens: &[Token]) -> usize {
    let end = tokens.iter().position(|token| token.is(';'));
    end.map_or(tokens.len(), |end| end + 1)
}

/// The modules of a crate, without those that only tests have.
#[derive(Debug, Default)]
pub struct Crate(BTreeMap<Place, Module>);

impl Crate {
    /// Reads a crate's files, given by path below the folder of its root.
    pub fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut modules = BTreeMap::new();
        for (path, text) in files {
            let mut place: Place = path
                .trim_end_matches(".rs")
                .split('/')
                .map(str::to_owned)
                .collect();
            let last = place.last().map(String::as_str);
            if matches!(last, Some("mod")) || matches!(path, "lib.rs" | "main.rs") {
                place.pop();
            }
            let mut inner = Vec::new();
            let module = Module::read(&tokens(text), &mut inner);
            for (name, module) in inner {
                let below = name.split("::").map(str::to_owned);
                modules.insert(place.iter().cloned().chain(below).collect(), module);
            }
            modules.insert(place, module);
        }
        let mut all = Self(modules);
        // Files whose `mod` is under `#[cfg(test)]` are declared by nobody.
        let declared: BTreeSet<Place> = all
            .0
            .keys()
            .filter(|at| all.is_declared(at))
            .cloned()
            .collect();
        all.0.retain(|place, _| declared.contains(place));
        all
    }

    /// Reads the crate whose root is `root`, in `folder`.
    pub fn at(folder: &Path, root: &str) -> Self {
        let mut paths = Vec::new();
        super::files(folder, &mut paths);
        let texts: Vec<(String, String)> = paths
            .iter()
            .map(|path| {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap();
                (name.to_owned(), fs::read_to_string(path).unwrap())
            })
            // A folder may have the root of a library and that of a program.
            .filter(|(name, _)| !matches!(name.as_str(), "lib.rs" | "main.rs") || name == root)
            .collect();
        assert!(texts.iter().any(|(name, _)| name == root), "no {root}");
        Self::new(
            texts
                .iter()
                .map(|(name, text)| (name.as_str(), text.as_str())),
        )
    }

    fn is_declared(&self, place: &[String]) -> bool {
        (0..place.len()).all(|depth| {
            let parent = self.0.get(&place[..depth]);
            parent.is_some_and(|parent| parent.children.contains(&place[depth]))
        })
    }

    /// The module that a path in module `at` leads to, `None` for one of another crate.
    fn resolve(&self, at: &[String], path: &[String], patience: usize) -> Option<Place> {
        let patience = patience.checked_sub(1)?;
        let (first, mut rest) = path.split_first()?;
        let mut place = match first.as_str() {
            "crate" => Place::new(),
            "self" => at.to_vec(),
            "super" => at.split_last()?.1.to_vec(),
            name => self.step(at, name, patience)??,
        };
        while let Some((name, after)) = rest.split_first() {
            if name == "super" {
                place.pop()?;
            } else {
                match self.step(&place, name, patience) {
                    Some(next) => place = next?,
                    // An item of the module, or of a type.
                    None => break,
                }
            }
            rest = after;
        }
        Some(place)
    }

    /// Where a name in module `at` leads: nowhere if it is no module's and nothing that was imported;
    /// to `None` if it is another crate's.
    fn step(&self, at: &[String], name: &str, patience: usize) -> Option<Option<Place>> {
        let module = self.0.get(at)?;
        if module.children.contains(name) {
            return Some(Some(at.iter().cloned().chain([name.to_owned()]).collect()));
        }
        if let Some(path) = module.names.get(name) {
            return Some(self.resolve(at, path, patience));
        }
        if module.items.contains(name) {
            return None;
        }
        let globs = module.globs.iter();
        let mut globs = globs.filter_map(|path| self.resolve(at, path, patience));
        globs.find_map(|glob| {
            let known = self.0.get(&glob)?.items.contains(name);
            if known {
                Some(Some(glob))
            } else {
                self.step(&glob, name, patience.checked_sub(1)?)
            }
        })
    }

    /// Of each module that has modules: which of them import which, each with an example.
    fn imports(&self) -> BTreeMap<Place, BTreeMap<String, BTreeMap<String, String>>> {
        let mut imports: BTreeMap<_, BTreeMap<_, BTreeMap<_, _>>> = BTreeMap::new();
        for (from, module) in &self.0 {
            for path in &module.paths {
                let Some(to) = self.resolve(from, path, 16) else {
                    continue;
                };
                let pairs = from.iter().zip(&to);
                let shared = pairs.take_while(|(from, to)| from == to).count();
                if let (Some(importer), Some(imported)) = (from.get(shared), to.get(shared)) {
                    let siblings = imports.entry(from[..shared].to_vec()).or_default();
                    let example = format!("{} has {}", from.join("::"), path.join("::"));
                    let imported = imported.clone();
                    let of_one = siblings.entry(importer.clone()).or_default();
                    of_one.entry(imported).or_insert(example);
                }
            }
        }
        imports
    }

    /// Imports of everything that a module of this crate has. They hide which names are used.
    pub fn globs(&self) -> Vec<String> {
        let mut globs = Vec::new();
        for (place, module) in &self.0 {
            let own = module.globs.iter();
            let own = own.filter(|path| self.resolve(place, path, 16).is_some());
            globs
                .extend(own.map(|path| format!("{} has {}::*", place.join("::"), path.join("::"))));
        }
        globs
    }

    /// The circles, each once: `parent: a → b → a`, and the paths that make it.
    pub fn circles(&self) -> Vec<String> {
        let mut circles = Vec::new();
        for (parent, imports) in self.imports() {
            let mut seen = BTreeSet::new();
            for start in imports.keys() {
                let Some(circle) = shortest(&imports, start) else {
                    continue;
                };
                let members: BTreeSet<&str> = circle.iter().copied().collect();
                if !seen.insert(members) {
                    continue;
                }
                let parent = if parent.is_empty() {
                    "crate".to_owned()
                } else {
                    parent.join("::")
                };
                let steps = circle
                    .windows(2)
                    .map(|pair| imports[pair[0]][pair[1]].clone());
                let steps: Vec<String> = steps.collect();
                circles.push(format!(
                    "{parent}: {} ({})",
                    circle.join(" → "),
                    steps.join(", ")
                ));
            }
        }
        circles
    }
}

/// The shortest way from a module back to itself, both ends included.
fn shortest<'a>(
    imports: &'a BTreeMap<String, BTreeMap<String, String>>,
    start: &'a str,
) -> Option<Vec<&'a str>> {
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for next in imports.get(at).into_iter().flat_map(BTreeMap::keys) {
            if next == start {
                let mut way = vec![start];
                let mut at = at;
                while at != start {
                    way.push(at);
                    at = before[at];
                }
                way.push(start);
                way.reverse();
                return Some(way);
            }
            if !before.contains_key(next.as_str()) {
                before.insert(next.as_str(), at);
                queue.push_back(next.as_str());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        Crate::new(files.iter().copied()).circles()
    }

    #[test]
    fn a_circle_is_found() {
        let found = circles(&[
            ("lib.rs", "mod a; mod b; mod c; pub mod d;"),
            ("a.rs", "use crate::{d::X, b::{self, Y}};"),
            ("b.rs", "pub fn y() { super::c::z::<u8>(); }"),
            ("c.rs", "pub struct Z(crate::a::A);"),
            ("d.rs", "pub struct X; use std::fmt;"),
        ]);
        assert_eq!(
            found,
            ["crate: a → b → c → a (a has crate::b, b has super::c::z, c has crate::a::A)"]
        );
    }

    #[test]
    fn modules_inside_count_for_those_around_them_and_among_themselves() {
        let found = circles(&[
            ("main.rs", "mod web; mod agent;"),
            ("web/mod.rs", "mod answer; mod routes;"),
            (
                "web/answer.rs",
                "use super::routes::Route; use crate::agent::frame::Frame;",
            ),
            ("web/routes.rs", "mod deep;"),
            (
                "web/routes/deep.rs",
                "fn f() -> super::super::answer::Answer {}",
            ),
            ("agent.rs", "pub mod frame;"),
            ("agent/frame.rs", "use crate::web;"),
        ]);
        let parents: Vec<&str> = found
            .iter()
            .map(|text| text.split(" (").next().unwrap())
            .collect();
        assert_eq!(
            parents,
            [
                "crate: agent → web → agent",
                "web: answer → routes → answer"
            ]
        );
    }

    #[test]
    fn names_are_followed_to_where_they_are_defined() {
        let through = |a: &str, root: &str| {
            circles(&[
                ("lib.rs", root),
                ("a.rs", a),
                ("b.rs", "use super::a::A; pub const B: u8 = 1;"),
            ])
        };
        for (a, root) in [
            ("use super::B;", "mod a; mod b; pub use b::B;"),
            ("use super::C;", "mod a; mod b; use b::B as C;"),
            ("use super::B;", "mod a; mod b; pub use self::b::*;"),
            ("use crate::b; fn f() -> b::X {}", "mod a; mod b;"),
        ] {
            assert_eq!(through(a, root).len(), 1, "{a} {root}");
        }
        assert!(through("use super::B;", "mod a; mod b; pub const B: u8 = 1;").is_empty());
    }

    #[test]
    fn imports_of_everything_are_found() {
        let files = [
            ("lib.rs", "mod a; pub use a::*; use std::io::prelude::*;"),
            ("a.rs", "#[cfg(test)] mod tests { use super::*; }"),
        ];
        assert_eq!(Crate::new(files).globs(), [" has a::*"]);
    }

    #[test]
    fn what_is_no_import_does_not_count() {
        for a in [
            "// use super::b;\n/* crate::b::B /* */ crate::b::B */",
            "/// See [`crate::b::B`].\npub struct A;",
            "const A: &str = \"crate::b::B\"; const C: &str = r#\"\"crate::b::B\"#; const Q: char = '\"';",
            "#[cfg(test)]\nmod tests { use super::super::b::B; fn f() {} }",
            "#[cfg(test)] #[path = \"x\"] use crate::b::B;",
            "use other::b::B; fn f<'a>() -> impl Fn() + use<'a> {}",
            "use super::Parents; mod inner { use super::A; }",
        ] {
            let found = circles(&[
                ("lib.rs", "mod a; mod b; pub struct Parents;"),
                ("a.rs", a),
                ("b.rs", "use crate::a::A;"),
            ]);
            assert_eq!(found, Vec::<String>::new(), "{a}");
        }
        // A file that only tests have.
        let found = circles(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "#[cfg(test)]\nmod tests;"),
            ("a/tests.rs", "use crate::b::B;"),
            ("b.rs", "use crate::a::A;"),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn code_after_a_literal_or_a_test_is_read() {
        for before in [
            "const Q: char = '\"';",
            "const Q: char = '\\'';",
            "const S: &str = \"\\\"\";",
            "const R: &[u8] = br##\"\"#\"##;",
            "struct S<'a>(&'a str);",
            "#[cfg(test)]\nfn f(x: [u8; 2]) { if x == [1, 2] {} }",
            "#[cfg(test)]\nmod tests;",
            "#[cfg(test)]\nuse x::{y, z};",
            "struct S { #[cfg(test)] x: u8 }",
        ] {
            let a = format!("{before} use super::b::B;");
            let found = circles(&[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", &a),
                ("b.rs", "use crate::a::A;"),
            ]);
            assert_eq!(found.len(), 1, "{a}");
        }
    }
}
