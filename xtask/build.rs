//! Lists what the contract with guests (`abi/`) declares, for the C header that `src/header.rs` writes.
//!
//! The sources give names, documentation and types; every value, size and offset is an expression that the compiler evaluates in
//! the crate itself. So the header cannot differ from it.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::{env, fs};

use proc_macro2::{TokenStream, TokenTree};
use quote::{format_ident, quote};
use syn::parse::{ParseStream, Parser};
use syn::{
    Attribute, Expr, ExprLit, Fields, Ident, ImplItem, Item, ItemStruct, Lit, Meta, Token, Type,
    UseTree, Visibility,
};

fn main() -> Result<(), Box<dyn Error>> {
    let source = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../abi/src");
    println!("cargo:rerun-if-changed={}", source.display());
    let read = |module: &str| -> Result<syn::File, Box<dyn Error>> {
        let text = fs::read_to_string(source.join(module).with_extension("rs"))?;
        Ok(syn::parse_file(&text)?)
    };
    let root = read("lib")?;
    let mut files = Vec::new();
    for item in &root.items {
        if let Item::Mod(module) = item {
            files.push((module.ident.to_string(), read(&module.ident.to_string())?));
        }
    }
    let mut names = Names::default();
    for item in &root.items {
        if let Item::Use(import) = item {
            names.export(&import.tree);
        }
    }
    for (module, file) in &files {
        for item in &file.items {
            if let Item::Struct(structure) = item {
                names.declare(module, structure);
            }
        }
    }
    let mut modules = vec![list(&names, "", quote!(plinth_abi), &root)?];
    for (module, file) in &files {
        let ident = format_ident!("{module}");
        modules.push(list(&names, module, quote!(plinth_abi::#ident), file)?);
    }
    let code = quote! {
        /// The modules of the contract, the crate itself first.
        pub static MODULES: &[Module] = &[#(#modules),*];
    };
    fs::write(
        Path::new(&env::var("OUT_DIR")?).join("abi.rs"),
        code.to_string(),
    )?;
    Ok(())
}

/// The names that things have in C: their shortest public paths, so that no two are the same.
#[derive(Default)]
struct Names {
    /// What the crate exports at its top, and from which module.
    exported: BTreeMap<String, String>,
    /// The C type of each structure. A structure around a single number is that number.
    types: BTreeMap<String, String>,
}

impl Names {
    fn export(&mut self, tree: &UseTree) {
        let UseTree::Path(path) = tree else { return };
        let items: Vec<_> = match &*path.tree {
            UseTree::Group(group) => group.items.iter().collect(),
            single => vec![single],
        };
        for item in items {
            if let UseTree::Name(name) = item {
                self.exported
                    .insert(name.ident.to_string(), path.ident.to_string());
            }
        }
    }

    fn declare(&mut self, module: &str, structure: &ItemStruct) {
        let c_type = match &structure.fields {
            Fields::Unnamed(fields) => fields.unnamed.first().and_then(|field| number(&field.ty)),
            _ => Some(format!("struct {}", self.of(module, &[&structure.ident]))),
        };
        self.types
            .extend(c_type.map(|c_type| (structure.ident.to_string(), c_type)));
    }

    /// `plinth_` and the path in lower case: `domain::DomainInfo`, which is exported at the top, is `plinth_domain_info`.
    fn of(&self, module: &str, path: &[&Ident]) -> String {
        let first = path.first().map(ToString::to_string).unwrap_or_default();
        let is_exported = self.exported.get(&first).is_some_and(|from| from == module);
        let module = Some(module.to_owned()).filter(|name| !is_exported && !name.is_empty());
        let parts = ["plinth".to_owned()].into_iter().chain(module);
        let parts = parts.chain(path.iter().map(ToString::to_string));
        parts
            .map(|part| in_snake_case(&part))
            .collect::<Vec<_>>()
            .join("_")
    }
}

fn in_snake_case(name: &str) -> String {
    let is_type = name.contains(char::is_lowercase);
    let mut snake = String::new();
    for (index, letter) in name.char_indices() {
        if is_type && index > 0 && letter.is_uppercase() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

/// The C type of a number's type.
fn number(rust: &Type) -> Option<String> {
    let Type::Path(path) = rust else { return None };
    let name = path.path.get_ident()?.to_string();
    matches!(name.as_str(), "u8" | "u16" | "u32" | "u64")
        .then(|| format!("uint{}_t", name.trim_start_matches('u')))
}

/// A module's documentation, constants and structures, as a `Module`.
fn list(
    names: &Names,
    module: &str,
    path: TokenStream,
    file: &syn::File,
) -> Result<TokenStream, Box<dyn Error>> {
    let mut listing = Listing {
        names,
        module,
        constants: Vec::new(),
        structures: Vec::new(),
    };
    for item in &file.items {
        listing.item(&[], item)?;
        if let Item::Macro(call) = item
            && call.ident.is_none()
        {
            let implementor = implementor(file, call.mac.path.require_ident()?)
                .ok_or("a macro that makes constants of no type")?;
            for (attributes, name) in entries.parse2(call.mac.tokens.clone())? {
                let path = [&implementor, &name];
                listing.constant(&path, &attributes, quote!(#implementor::#name.0));
            }
        }
    }
    let docs = docs(&file.attrs);
    let (constants, structures) = (listing.constants, listing.structures);
    Ok(quote! {
        {
            #[allow(unused_imports, reason = "a module may have no constants")]
            use #path::*;
            Module { docs: #docs, constants: &[#(#constants),*], structures: &[#(#structures),*] }
        }
    })
}

/// The type for which a macro of this file, such as `calls!`, makes constants: behind `impl` in its definition.
fn implementor(file: &syn::File, name: &Ident) -> Option<Ident> {
    fn find(tokens: TokenStream) -> Option<Ident> {
        let mut tokens = tokens.into_iter();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(word) if word == "impl" => match tokens.next()? {
                    TokenTree::Ident(found) => return Some(found),
                    _ => return None,
                },
                TokenTree::Group(group) => {
                    if let Some(found) = find(group.stream()) {
                        return Some(found);
                    }
                }
                _ => {}
            }
        }
        None
    }
    file.items.iter().find_map(|item| match item {
        Item::Macro(definition) if definition.ident.as_ref() == Some(name) => {
            find(definition.mac.tokens.clone())
        }
        _ => None,
    })
}

/// The entries of such a macro: `/// documentation`, `NAME = ...;`.
fn entries(input: ParseStream<'_>) -> syn::Result<Vec<(Vec<Attribute>, Ident)>> {
    let mut entries = Vec::new();
    while !input.is_empty() {
        entries.push((input.call(Attribute::parse_outer)?, input.parse()?));
        while !input.peek(Token![;]) {
            input.parse::<TokenTree>()?;
        }
        input.parse::<Token![;]>()?;
    }
    Ok(entries)
}

/// What is found in a module.
struct Listing<'a> {
    names: &'a Names,
    module: &'a str,
    constants: Vec<TokenStream>,
    structures: Vec<TokenStream>,
}

impl Listing<'_> {
    /// Lists what an item declares that C can have: numbers, and structures of them.
    fn item(&mut self, outer: &[&Ident], item: &Item) -> Result<(), Box<dyn Error>> {
        match item {
            Item::Const(constant) if matches!(constant.vis, Visibility::Public(_)) => {
                let path: Vec<_> = outer.iter().copied().chain([&constant.ident]).collect();
                let value = quote!(#(#path)::*);
                match &*constant.ty {
                    Type::Array(array) => self.elements(&path, &constant.attrs, array, &value),
                    single if number(single).is_some() => {
                        self.constant(&path, &constant.attrs, value);
                    }
                    _ => {}
                }
            }
            Item::Mod(inner) => {
                let path: Vec<_> = outer.iter().copied().chain([&inner.ident]).collect();
                for item in inner.content.iter().flat_map(|(_, items)| items) {
                    self.item(&path, item)?;
                }
            }
            Item::Impl(methods) if methods.trait_.is_none() => {
                let Type::Path(of) = &*methods.self_ty else {
                    return Ok(());
                };
                let of = of.path.require_ident()?;
                for item in &methods.items {
                    let ImplItem::Const(constant) = item else {
                        continue;
                    };
                    let (name, path) = (&constant.ident, [of, &constant.ident]);
                    if number(&constant.ty).is_some() {
                        self.constant(&path, &constant.attrs, quote!(#of::#name));
                    } else if self.is_number(of) {
                        self.constant(&path, &constant.attrs, quote!(#of::#name.0));
                    }
                }
            }
            Item::Struct(structure) if matches!(structure.fields, Fields::Named(_)) => {
                self.structure(structure)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a type is a number in C.
    fn is_number(&self, name: &Ident) -> bool {
        let c_type = self.names.types.get(&name.to_string());
        c_type.is_some_and(|c_type| !c_type.starts_with("struct"))
    }

    fn constant(&mut self, path: &[&Ident], attributes: &[Attribute], value: TokenStream) {
        let name = self.names.of(self.module, path).to_uppercase();
        let docs = docs(attributes);
        self.constants.push(quote! {
            Constant { name: #name, docs: #docs, value: #value as u64, size: size_of_val(&#value) }
        });
    }

    /// C has no constants that are arrays: `NAME_0` and so on.
    fn elements(
        &mut self,
        path: &[&Ident],
        attributes: &[Attribute],
        array: &syn::TypeArray,
        value: &TokenStream,
    ) {
        let Expr::Lit(ExprLit {
            lit: Lit::Int(length),
            ..
        }) = &array.len
        else {
            return;
        };
        let Some((last, outer)) = path.split_last() else {
            return;
        };
        for index in 0..length.base10_parse().unwrap_or(0_usize) {
            let element = format_ident!("{last}_{index}");
            let path: Vec<_> = outer.iter().copied().chain([&element]).collect();
            self.constant(&path, attributes, quote!(#value[#index]));
        }
    }

    fn structure(&mut self, structure: &ItemStruct) -> Result<(), Box<dyn Error>> {
        let rust = &structure.ident;
        let name = self.names.of(self.module, &[rust]);
        let docs_of_structure = docs(&structure.attrs);
        let mut fields = Vec::new();
        for field in &structure.fields {
            let ident = field.ident.as_ref().ok_or("a field without a name")?;
            let (element, length) = match &field.ty {
                Type::Array(array) => {
                    let length = &array.len;
                    (&*array.elem, quote!(Some(#length)))
                }
                single => (single, quote!(None)),
            };
            let c_type = number(element)
                .or_else(|| match element {
                    Type::Path(path) => {
                        let name = path.path.get_ident()?.to_string();
                        self.names.types.get(&name).cloned()
                    }
                    _ => None,
                })
                .ok_or_else(|| format!("C has no type for {rust}::{ident}"))?;
            let (name, docs) = (ident.to_string(), docs(&field.attrs));
            fields.push(quote! {
                Field {
                    name: #name,
                    docs: #docs,
                    c_type: #c_type,
                    length: #length,
                    offset: core::mem::offset_of!(#rust, #ident),
                }
            });
        }
        self.structures.push(quote! {
            Structure { name: #name, docs: #docs_of_structure, size: size_of::<#rust>(), fields: &[#(#fields),*] }
        });
        Ok(())
    }
}

/// The lines of a documentation comment, as an array.
fn docs(attributes: &[Attribute]) -> TokenStream {
    let lines = attributes.iter().filter_map(|attribute| {
        let Meta::NameValue(pair) = &attribute.meta else {
            return None;
        };
        match &pair.value {
            Expr::Lit(ExprLit {
                lit: Lit::Str(text),
                ..
            }) if pair.path.is_ident("doc") => Some(text.value().trim().to_owned()),
            _ => None,
        }
    });
    quote!(&[#(#lines),*])
}
