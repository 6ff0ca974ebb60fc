//! Counts what there is to read: lines of code, and where it is unsafe.
//!
//! A line counts if it has a token on it that is no comment, no documentation and no part of a test. The files are those that the
//! compiler reads: from the root of each library and program along its modules, so that a forgotten file does not count. Code
//! inside a macro's braces is no syntax tree yet; there `unsafe` is found among the tokens.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr as _;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ExprLit, Item, ItemMod, Lit, Meta, Token};

use crate::compile::KERNEL_PACKAGE;
use crate::workspace::Workspace;

/// Why nothing is counted.
#[derive(Debug, thiserror::Error)]
enum StatsError {
    /// A file that the compiler would read cannot be.
    #[error("cannot read {0}: {1}\n  try: `cargo build`, which says what is wrong with it")]
    Read(PathBuf, std::io::Error),
    /// A file is no Rust.
    #[error("{0}, line {1}: {2}\n  try: `cargo build`, which says more")]
    Syntax(PathBuf, usize, syn::Error),
    /// A module without a file.
    #[error("{0} has a module `{1}` without a file\n  try: `cargo build`, which says more")]
    NoFile(PathBuf, String),
}

/// What is counted of a file, or of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    files: usize,
    lines: usize,
    blocks: usize,
    functions: usize,
    implementations: usize,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.lines += other.lines;
        self.blocks += other.blocks;
        self.functions += other.functions;
        self.implementations += other.implementations;
    }
}

/// `cargo xtask stats`.
pub fn main() -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    let mut kernel = Vec::new();
    let mut others = Vec::new();
    for package in &workspace.packages {
        let files = files(&package.roots, |finder| finder.count)?;
        if package.name == KERNEL_PACKAGE {
            kernel = by_directory(&files);
        } else {
            others.push((package.name.clone(), sum(files.values())));
        }
    }
    others.sort_by(|(a, _), (b, _)| a.cmp(b));
    print!("{}", table("kernel", &kernel));
    println!();
    print!("{}", table("package", &others));
    Ok(ExitCode::SUCCESS)
}

fn sum<'a>(counts: impl IntoIterator<Item = &'a Count>) -> Count {
    let mut sum = Count::default();
    counts.into_iter().for_each(|&count| sum += count);
    sum
}

/// The counts of a package by its directories below `src`; what is in `src` itself comes first.
pub fn by_directory<T: Copy + Default + AddAssign>(
    files: &BTreeMap<PathBuf, T>,
) -> Vec<(String, T)> {
    let mut directories = BTreeMap::<String, T>::new();
    for (path, &count) in files {
        let parts: Vec<_> = path.iter().filter_map(|part| part.to_str()).collect();
        let below = parts.iter().rposition(|part| *part == "src");
        let name = match below.and_then(|src| parts.get(src + 1..)) {
            Some([directory, _, ..]) => format!("{directory}/"),
            _ => "./".to_owned(),
        };
        *directories.entry(name).or_default() += count;
    }
    directories.into_iter().collect()
}

/// A table with a last line for the sum.
fn table(what: &str, rows: &[(String, Count)]) -> String {
    let mut table = format!(
        "{what:<26}{:>7}{:>8}{:>15}{:>12}{:>14}\n",
        "files", "lines", "unsafe blocks", "unsafe fns", "unsafe impls"
    );
    let total = ("total".to_owned(), sum(rows.iter().map(|(_, count)| count)));
    for (name, count) in rows.iter().chain([&total]) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{name:<26}{:>7}{:>8}{:>15}{:>12}{:>14}",
            count.files, count.lines, count.blocks, count.functions, count.implementations
        );
    }
    table
}

/// The lines of a package's files that have code which is not only for tests, beginning with 1.
pub fn code_lines(roots: &[PathBuf]) -> anyhow::Result<BTreeMap<PathBuf, BTreeSet<usize>>> {
    Ok(files(roots, |finder| finder.lines)?)
}

/// The files of a package, each with what is made of it: the roots, and what their modules lead to.
fn files<T>(
    roots: &[PathBuf],
    made: impl Fn(Finder) -> T,
) -> Result<BTreeMap<PathBuf, T>, StatsError> {
    let mut all = BTreeMap::new();
    let mut left: Vec<_> = roots.iter().map(|root| (root.clone(), true)).collect();
    while let Some((path, is_root)) = left.pop() {
        if all.contains_key(&path) {
            continue;
        }
        let text =
            fs::read_to_string(&path).map_err(|error| StatsError::Read(path.clone(), error))?;
        let finder = look(&text)
            .map_err(|error| StatsError::Syntax(path.clone(), error.span().start().line, error))?;
        for module in &finder.modules {
            let file = module
                .candidates(&path, is_root)
                .into_iter()
                .find(|file| file.is_file())
                .ok_or_else(|| StatsError::NoFile(path.clone(), module.name()))?;
            left.push((file, false));
        }
        all.insert(path, made(finder));
    }
    Ok(all)
}

/// A module that is in a file of its own.
#[derive(Debug, PartialEq, Eq)]
struct Module {
    /// The names of the modules around it in the same file, and its own.
    names: Vec<String>,
    /// What its attribute `path` says.
    path: Option<String>,
}

impl Module {
    fn name(&self) -> String {
        self.names.join("::")
    }

    /// Where its file may be, if it is declared in `file` (Reference, "Module source filenames").
    fn candidates(&self, file: &Path, is_root: bool) -> Vec<PathBuf> {
        let directory = file.parent().unwrap_or(Path::new(""));
        let has_directory = is_root || file.file_name().is_some_and(|name| name == "mod.rs");
        let (own, around) = match self.names.split_last() {
            Some((own, around)) => (own.as_str(), around),
            None => return Vec::new(),
        };
        let mut place = directory.to_path_buf();
        // A path is relative to the file's directory, unless modules are around it.
        if !has_directory && (self.path.is_none() || !around.is_empty()) {
            place.push(file.file_stem().unwrap_or_default());
        }
        place.extend(around);
        match &self.path {
            Some(path) => vec![place.join(path)],
            None => vec![
                place.join(format!("{own}.rs")),
                place.join(own).join("mod.rs"),
            ],
        }
    }
}

/// Looks at the text of a file.
fn look(text: &str) -> syn::Result<Finder> {
    // Lines are those of the very text that is parsed here: spans of several texts lie behind one another.
    let tokens = TokenStream::from_str(text)?;
    let file: syn::File = syn::parse2(tokens.clone())?;
    let mut finder = Finder::default();
    if !is_off(&file.attrs) {
        finder.visit_file(&file);
        lines(tokens, &mut finder.lines);
    }
    for test in &finder.tests {
        finder.lines.retain(|line| !test.contains(line));
    }
    finder.count.files = 1;
    finder.count.lines = finder.lines.len();
    Ok(finder)
}

/// Notes the lines of all tokens but those of documentation.
fn lines(tokens: TokenStream, into: &mut BTreeSet<usize>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '#') {
            let bang = tokens
                .next_if(|next| matches!(next, TokenTree::Punct(punct) if punct.as_char() == '!'));
            if tokens.next_if(is_documentation).is_some() {
                continue;
            }
            into.extend(bang.map(|bang| bang.span().start().line));
        }
        match token {
            TokenTree::Group(group) => {
                into.extend([
                    group.span_open().start().line,
                    group.span_close().end().line,
                ]);
                lines(group.stream(), into);
            }
            token => into.extend(token.span().start().line..=token.span().end().line),
        }
    }
}

/// Whether a token is `[doc = ...]`, which is what a comment of documentation becomes.
fn is_documentation(token: &TokenTree) -> bool {
    let TokenTree::Group(group) = token else {
        return false;
    };
    let mut inner = group.stream().into_iter();
    group.delimiter() == Delimiter::Bracket
        && matches!(inner.next(), Some(TokenTree::Ident(name)) if name == "doc")
        && matches!(inner.next(), Some(TokenTree::Punct(punct)) if punct.as_char() == '=')
}

/// Whether an attribute makes its item one that a build for use does not have.
fn is_off(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<Meta>()
                .is_ok_and(|condition| holds(&condition) == Some(false))
    })
}

/// Whether a condition holds in a build for use, as far as that is known: it is no test, and no feature is on.
fn holds(condition: &Meta) -> Option<bool> {
    let parts = || {
        condition
            .require_list()
            .and_then(|list| list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated))
            .map(|parts| parts.iter().map(holds).collect::<Vec<_>>())
            .unwrap_or_default()
    };
    let path = condition.path();
    if path.is_ident("test") || path.is_ident("feature") {
        Some(false)
    } else if path.is_ident("not") {
        parts().first().copied().flatten().map(|holds| !holds)
    } else if path.is_ident("any") {
        let parts = parts();
        match parts.contains(&Some(true)) {
            true => Some(true),
            false => parts.iter().all(Option::is_some).then_some(false),
        }
    } else if path.is_ident("all") {
        let parts = parts();
        match parts.contains(&Some(false)) {
            true => Some(false),
            false => parts.iter().all(Option::is_some).then_some(true),
        }
    } else {
        None
    }
}

/// Walks a file's syntax tree.
#[derive(Debug, Default)]
struct Finder {
    count: Count,
    lines: BTreeSet<usize>,
    /// The lines of what is only for tests.
    tests: Vec<std::ops::RangeInclusive<usize>>,
    modules: Vec<Module>,
    /// The modules around what is looked at.
    around: Vec<String>,
}

impl Finder {
    /// Whether something is to be looked at; if it is not, its lines do not count.
    fn takes(&mut self, attributes: &[Attribute], whole: &impl Spanned) -> bool {
        let off = is_off(attributes);
        if off {
            let span = whole.span();
            self.tests.push(span.start().line..=span.end().line);
        }
        !off
    }

    /// Finds `unsafe` in tokens that are no tree: in front of braces, a function or an implementation.
    fn find_in(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Group(group) => self.find_in(group.stream()),
                TokenTree::Ident(word) if word == "unsafe" => match tokens.peek() {
                    Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                        self.count.blocks += 1;
                    }
                    Some(TokenTree::Ident(word)) if word == "fn" || word == "extern" => {
                        self.count.functions += 1;
                    }
                    Some(TokenTree::Ident(word)) if word == "impl" => {
                        self.count.implementations += 1;
                    }
                    _ => {}
                },
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Const(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::ExternCrate(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::ForeignMod(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Macro(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Trait(item) => &item.attrs,
            Item::TraitAlias(item) => &item.attrs,
            Item::Type(item) => &item.attrs,
            Item::Union(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if self.takes(attributes, item) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.around.push(module.ident.to_string());
        if module.content.is_none() {
            let path = module.attrs.iter().find_map(|attribute| {
                let value = &attribute.meta.require_name_value().ok()?.value;
                match value {
                    Expr::Lit(ExprLit {
                        lit: Lit::Str(path),
                        ..
                    }) if attribute.path().is_ident("path") => Some(path.value()),
                    _ => None,
                }
            });
            self.modules.push(Module {
                names: self.around.clone(),
                path,
            });
        }
        visit::visit_item_mod(self, module);
        self.around.pop();
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if self.takes(&function.attrs, function) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if self.takes(&field.attrs, field) {
            visit::visit_field(self, field);
        }
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.count.functions += usize::from(matches!(signature.safety, syn::Safety::Unsafe(_)));
        visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, implementation: &'ast syn::ItemImpl) {
        self.count.implementations += usize::from(implementation.unsafety.is_some());
        visit::visit_item_impl(self, implementation);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.count.blocks += 1;
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.find_in(call.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(text: &str) -> Count {
        look(text).unwrap().count
    }

    #[test]
    fn lines_are_those_with_code() {
        let text = "//! Documentation.\n\n#![no_std]\n/// More.\nfn f() {\n    // Why.\n    let s = \"two\n  lines\"; /* in\n between */\n}\n";
        // The attribute, the function's head, the string's two lines, the brace.
        assert_eq!(counted(text).lines, 5);
        assert_eq!(
            counted("#[doc = \"a\"]\nstruct S;\n#[doc(hidden)]\nstruct T;\n").lines,
            3
        );
        assert_eq!(counted("\n// nothing\n").lines, 0);
    }

    #[test]
    fn what_is_for_tests_does_not_count() {
        let text = "struct S {\n a: u8,\n #[cfg(test)]\n b: u8,\n}\n#[cfg(test)]\nmod tests {\n fn f() { unsafe { g() } }\n}\n";
        let count = counted(text);
        assert_eq!((count.lines, count.blocks), (3, 0));
        let count = |condition: &str| {
            counted(&format!(
                "#[cfg({condition})]\nfn f() {{\n unsafe {{}}\n}}\n"
            ))
        };
        for off in [
            "test",
            "feature = \"x\"",
            "any(test, feature = \"x\")",
            "all(test, target_os = \"none\")",
        ] {
            assert_eq!((count(off).lines, count(off).blocks), (0, 0), "{off}");
        }
        for on in [
            "not(test)",
            "target_os = \"none\"",
            "any(test, target_os = \"none\")",
            "not(all(test, unix))",
        ] {
            assert_eq!((count(on).lines, count(on).blocks), (4, 1), "{on}");
        }
    }

    #[test]
    fn unsafe_is_told_apart() {
        let text = "unsafe fn f(g: unsafe fn()) { unsafe { g() } }\nunsafe impl Send for S {}\nimpl S { unsafe fn h() {} }\n\
            const fn safe() { let unsafely = 1; }\n// unsafe { }\nconst T: &str = \"unsafe { }\";\n";
        let count = counted(text);
        assert_eq!(
            (count.blocks, count.functions, count.implementations),
            (1, 2, 1)
        );
        let count = counted(
            "macro_rules! m { () => { unsafe { unsafe { } } unsafe impl X for Y {} unsafe fn f() {} } }\nm!(unsafe {});\n",
        );
        assert_eq!(
            (count.blocks, count.functions, count.implementations),
            (3, 1, 1)
        );
    }

    #[test]
    fn modules_lead_to_files() {
        let text =
            "mod a;\nmod b { mod c; }\n#[cfg(test)]\nmod tests;\n#[path = \"x/d.rs\"]\nmod d;\n";
        let modules = look(text).unwrap().modules;
        let found = |file: &str, is_root| {
            let candidates = |module: &Module| module.candidates(Path::new(file), is_root);
            modules.iter().map(candidates).collect::<Vec<_>>()
        };
        let paths = |paths: [&[&str]; 3]| {
            paths.map(|some| some.iter().map(PathBuf::from).collect::<Vec<_>>())
        };
        assert_eq!(
            found("src/main.rs", true),
            paths([
                &["src/a.rs", "src/a/mod.rs"],
                &["src/b/c.rs", "src/b/c/mod.rs"],
                &["src/x/d.rs"]
            ])
        );
        assert_eq!(
            found("src/m/mod.rs", false)[0],
            [Path::new("src/m/a.rs"), Path::new("src/m/a/mod.rs")]
        );
        assert_eq!(
            found("src/m.rs", false),
            paths([
                &["src/m/a.rs", "src/m/a/mod.rs"],
                &["src/m/b/c.rs", "src/m/b/c/mod.rs"],
                &["src/x/d.rs"]
            ])
        );
    }

    #[test]
    fn the_kernel_is_counted_by_directory() {
        let file = |path: &str, lines| {
            let count = Count {
                files: 1,
                lines,
                ..Count::default()
            };
            (PathBuf::from(path), count)
        };
        let files = BTreeMap::from([
            file("/src/kernel/src/main.rs", 1),
            file("/src/kernel/src/arch/x.rs", 2),
            file("/src/kernel/src/arch/y/z.rs", 4),
        ]);
        let rows = by_directory(&files);
        let lines: Vec<_> = rows
            .iter()
            .map(|(name, count)| (name.as_str(), count.lines))
            .collect();
        assert_eq!(lines, [("./", 1), ("arch/", 6)]);
        let table = table("kernel", &rows);
        assert_eq!(table.lines().count(), 4);
        assert!(
            table.lines().last().unwrap().starts_with("total") && table.contains(" 7 "),
            "{table}"
        );
    }

    #[test]
    fn this_workspace_can_be_counted() {
        let workspace = Workspace::load().unwrap();
        for package in workspace.packages {
            let count = sum(files(&package.roots, |finder| finder.count)
                .unwrap()
                .values());
            assert!(count.files > 0 && count.lines > 0, "{}", package.name);
        }
    }

    #[test]
    fn what_is_no_rust_is_told_by_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("lib.rs");
        fs::write(&root, "fn f() {}\n\nfn g( {}\n").unwrap();
        let lines = |root: &PathBuf| code_lines(std::slice::from_ref(root));
        let error = lines(&root).unwrap_err().to_string();
        assert!(error.contains("lib.rs, line 3"), "{error}");
        fs::write(&root, "mod nowhere;\n").unwrap();
        let error = lines(&root).unwrap_err().to_string();
        assert!(
            error.contains("nowhere") && error.contains("try: "),
            "{error}"
        );
        assert!(lines(&directory.path().join("none.rs")).is_err());
        fs::write(&root, "fn f() {}\n\n#[cfg(test)]\nfn g() {}\nfn h() {}\n").unwrap();
        let lines = lines(&root).unwrap().remove(&root);
        assert_eq!(lines, Some(BTreeSet::from([1, 5])));
    }
}
