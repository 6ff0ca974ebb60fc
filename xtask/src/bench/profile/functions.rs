//! From addresses to functions, by the line tables of the programs that were run.
//!
//! An instruction counts for the function in which it was written, inlined or not. What is of a library, where that was inlined,
//! counts for the function of this workspace that uses it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use addr2line::gimli::{Dwarf, EndianSlice, LittleEndian};
use anyhow::Context;
use elf::ElfBytes;
use elf::abi::{PF_X, PT_LOAD};

use super::rounds::is_kernel;

/// The longest instruction, in bytes (SDM vol. 2, 2.3.11).
const LONGEST: u64 = 15;

/// A program that was run.
pub struct Program<'a> {
    name: &'a str,
    /// Its code's addresses.
    code: Vec<std::ops::Range<u64>>,
    lines: addr2line::Context<EndianSlice<'a, LittleEndian>>,
}

/// A function, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Function {
    /// The program: the kernel's or a guest's name.
    pub program: String,
    /// The name, as far as it is known.
    pub name: String,
    /// The file, relative to the workspace, or for a library's the end of its path.
    pub file: String,
}

impl<'a> Program<'a> {
    /// Reads an ELF file.
    pub fn new(name: &'a str, file: &'a [u8]) -> anyhow::Result<Self> {
        let elf = ElfBytes::<elf::endian::LittleEndian>::minimal_parse(file)?;
        let segments = elf.segments().context("it has no segments")?;
        let code = segments
            .iter()
            .filter(|segment| segment.p_type == PT_LOAD && segment.p_flags & PF_X != 0)
            .map(|segment| segment.p_vaddr..segment.p_vaddr.saturating_add(segment.p_memsz))
            .collect();
        let section = |id: addr2line::gimli::SectionId| -> anyhow::Result<_> {
            let data = match elf.section_header_by_name(id.name())? {
                Some(header) => elf.section_data(&header)?.0,
                None => &[],
            };
            Ok(EndianSlice::new(data, LittleEndian))
        };
        let lines = addr2line::Context::from_dwarf(Dwarf::load(section)?)?;
        Ok(Self { name, code, lines })
    }

    fn holds(&self, address: u64) -> bool {
        self.code.iter().any(|code| code.contains(&address))
    }

    /// How well some instructions, in the order of their execution, fit this program: how many of them would be cut by a line's
    /// begin, if one that ends where the next one begins has the bytes between. None if one is not in its code.
    fn cuts(&self, addresses: &[u64]) -> Option<usize> {
        if !addresses.iter().all(|&address| self.holds(address)) {
            return None;
        }
        let is_cut = |pair: &&[u64]| {
            let (begin, end) = (pair[0], pair[1]);
            let inside = begin.saturating_add(1)..end;
            (begin..=begin.saturating_add(LONGEST)).contains(&end)
                && self
                    .lines
                    .find_location_range(inside.start, inside.end)
                    .is_ok_and(|mut lines| lines.any(|(line, ..)| inside.contains(&line)))
        };
        Some(addresses.windows(2).filter(is_cut).count())
    }

    /// The function to which an instruction belongs.
    fn function(&self, root: &Path, address: u64) -> Function {
        innermost(self.functions(root, address)).unwrap_or_else(|| Function {
            program: self.name.to_owned(),
            name: unknown(),
            file: String::new(),
        })
    }

    /// The functions inlined at an instruction, the innermost first, and the one that has it; and whether they are of this workspace.
    fn functions(&self, root: &Path, address: u64) -> Vec<(Function, bool)> {
        let mut functions = Vec::new();
        if self.holds(address)
            && let Ok(mut frames) = self.lines.find_frames(address).skip_all_loads()
        {
            while let Ok(Some(frame)) = frames.next() {
                let file = frame.location.and_then(|location| location.file);
                let file = PathBuf::from(file.unwrap_or_default());
                let name = frame
                    .function
                    .as_ref()
                    .and_then(|name| name.demangle().ok());
                let own = file.strip_prefix(root).ok();
                let function = Function {
                    program: self.name.to_owned(),
                    name: name.map_or_else(unknown, |name| short(&name).to_owned()),
                    file: own.map_or_else(|| end_of(&file), |own| own.display().to_string()),
                };
                functions.push((function, own.is_some()));
            }
        }
        functions
    }
}

/// The first function that is of this workspace, or the first of all.
fn innermost(mut functions: Vec<(Function, bool)>) -> Option<Function> {
    let own = functions.iter().position(|(_, is_own)| *is_own);
    let first = own.or((!functions.is_empty()).then_some(0))?;
    Some(functions.swap_remove(first).0)
}

/// A function's name without its path and its parameters: its file is told as well, and all its forms are written at one place.
fn short(name: &str) -> &str {
    let name = match name.split_once('<') {
        Some((before, _)) if !before.is_empty() => before,
        _ => name,
    };
    name.rsplit("::").next().unwrap_or(name)
}

fn unknown() -> String {
    "?".to_owned()
}

/// The last two parts of a path.
fn end_of(path: &Path) -> String {
    let parts: Vec<_> = path.iter().collect();
    let end: PathBuf = parts[parts.len().saturating_sub(2)..].iter().collect();
    end.display().to_string()
}

/// Code of a guest of which it is not known whose it is.
const SOME_GUEST: &str = "guest";
/// Such code is told by the page, in bytes.
const PAGE: u64 = 4096;

/// The programs of a machine: its kernel, and its guests.
pub struct Programs<'a> {
    kernel: Program<'a>,
    guests: Vec<Program<'a>>,
    root: &'a Path,
}

impl<'a> Programs<'a> {
    /// The kernel's program, those of the guests, and the workspace's directory.
    pub fn new(kernel: Program<'a>, guests: Vec<Program<'a>>, root: &'a Path) -> Self {
        Self {
            kernel,
            guests,
            root,
        }
    }

    /// Whether a guest, if it has an instruction, has it from a file of the workspace, inlined or not.
    pub fn is_from(&self, file: &str, guest: &str, address: u64) -> bool {
        let guest = self.guests.iter().find(|program| program.name == guest);
        guest.is_some_and(|guest| {
            let functions = guest.functions(self.root, address);
            functions.iter().any(|(function, _)| function.file == file)
        })
    }

    /// How many of the instructions, which are in the order of their execution, belong to which function.
    pub fn count(&self, addresses: &[u64]) -> BTreeMap<Function, usize> {
        let mut counts = BTreeMap::new();
        let mut known = HashMap::new();
        for stretch in addresses.chunk_by(|one, other| is_kernel(*one) == is_kernel(*other)) {
            let program = self.of(stretch);
            for &address in stretch {
                let name = program.map_or(SOME_GUEST, |program| program.name);
                let function = known
                    .entry((name, address))
                    .or_insert_with(|| match program {
                        Some(program) => program.function(self.root, address),
                        None => Function {
                            program: SOME_GUEST.to_owned(),
                            name: format!("code at {:#x}", address & !(PAGE - 1)),
                            file: String::new(),
                        },
                    });
                *counts.entry(function.clone()).or_default() += 1;
            }
        }
        counts
    }

    /// The program of a stretch of instructions that are all of the kernel's, or all of one guest's; none where several guests may have
    /// them, for they are linked to the same addresses, or where none has.
    fn of(&self, stretch: &[u64]) -> Option<&Program<'a>> {
        if is_kernel(*stretch.first()?) {
            return Some(&self.kernel);
        }
        let mut fitting: Vec<_> = self
            .guests
            .iter()
            .filter_map(|guest| Some((guest.cuts(stretch)?, guest)))
            .collect();
        fitting.sort_by_key(|(cuts, _)| *cuts);
        match fitting.as_slice() {
            [(best, _), (next, _), ..] if best == next => None,
            [(_, guest), ..] => Some(guest),
            [] => None,
        }
    }
}

/// Prints the counts of a round, most first.
pub fn table(out: &mut impl Write, counts: &BTreeMap<Function, usize>) -> std::io::Result<()> {
    let mut rows: Vec<_> = counts.iter().collect();
    // Those that are equal stay in the order of their names.
    rows.sort_by_key(|(_, count)| Reverse(**count));
    let all: usize = counts.values().sum();
    let width = |of: fn(&Function) -> &str, title: &str| {
        let names = counts.keys().map(of).chain([title]);
        names
            .map(|name| name.chars().count())
            .max()
            .unwrap_or_default()
    };
    let (program, function) = ("program", "function");
    let programs = width(|function| &function.program, program);
    let functions = width(|function| &function.name, function);
    writeln!(
        out,
        "instructions   share  {program:programs$}  {function:functions$}  file"
    )?;
    for (
        Function {
            program,
            name,
            file,
        },
        count,
    ) in rows
    {
        let share = *count as f64 * 100.0 / all as f64;
        let line =
            format!("{count:>12} {share:>5.1} %  {program:programs$}  {name:functions$}  {file}");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Where it is, so that its address is one that is known.
    #[inline(never)]
    fn landmark(number: u64) -> u64 {
        std::hint::black_box(number.wrapping_mul(3))
    }

    /// This program, and by how much it was moved when it was loaded.
    fn this_program() -> (Vec<u8>, u64) {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let path = fs::read_link("/proc/self/exe").unwrap();
        let own = |line: &&str| line.ends_with(path.to_str().unwrap());
        let first = maps.lines().find(own).unwrap();
        let (start, _) = first.split_once('-').unwrap();
        let file = fs::read("/proc/self/exe").unwrap();
        let elf = ElfBytes::<elf::endian::LittleEndian>::minimal_parse(&file).unwrap();
        let linked = elf
            .segments()
            .unwrap()
            .iter()
            .find(|segment| segment.p_type == PT_LOAD);
        let linked = linked.unwrap().p_vaddr;
        (file, u64::from_str_radix(start, 16).unwrap() - linked)
    }

    #[test]
    fn an_instruction_belongs_to_the_function_in_which_it_was_written() {
        assert_eq!(landmark(1), 3);
        let (file, moved) = this_program();
        let program = Program::new("xtask", &file).unwrap();
        let address = landmark as fn(u64) -> u64 as usize as u64 - moved;
        assert!(program.holds(address) && !program.holds(u64::MAX));
        let root = crate::workspace::source_root();
        let function = program.function(&root, address);
        assert_eq!(
            (
                function.program.as_str(),
                function.name.as_str(),
                function.file.as_str()
            ),
            ("xtask", "landmark", "xtask/src/bench/profile/functions.rs")
        );
        // Elsewhere it is a library's.
        let function = program.function(Path::new("/nowhere"), address);
        assert_eq!(function.file, "profile/functions.rs");
        assert_eq!(program.function(&root, u64::MAX).name, "?");
    }

    #[test]
    fn instructions_that_cross_a_line_s_begin_do_not_fit() {
        let (file, moved) = this_program();
        let program = Program::new("xtask", &file).unwrap();
        let address = landmark as fn(u64) -> u64 as usize as u64 - moved;
        let lines = program.lines.find_location_range(address, address + 64);
        let begins: Vec<_> = lines.unwrap().map(|(begin, ..)| begin).take(3).collect();
        assert_eq!(program.cuts(&begins), Some(0));
        // As if one began a byte before a line, and ended a byte behind its begin.
        let wrong = [begins[1] - 1, begins[1] + 1];
        assert_eq!(program.cuts(&wrong), Some(1));
        assert_eq!(program.cuts(&[begins[0], u64::MAX]), None);
    }

    #[test]
    fn code_of_which_nobody_knows_whose_it_is_is_told_by_page() {
        let (file, moved) = this_program();
        let address = landmark as fn(u64) -> u64 as usize as u64 - moved;
        let program = |name| Program::new(name, &file).unwrap();
        let programs = |guests| Programs::new(program("kernel"), guests, Path::new("/nowhere"));
        let names = |programs: &Programs<'_>, addresses: &[u64]| {
            let counts = programs.count(addresses).into_iter();
            counts
                .map(|(function, count)| (function.program, function.name, count))
                .collect::<Vec<_>>()
        };
        let told = |program: &str, name: &str, count| (program.to_owned(), name.to_owned(), count);
        let page = format!("code at {:#x}", address & !0xfff);
        let one = programs(vec![program("one")]);
        assert_eq!(names(&one, &[address; 2]), [told("one", "landmark", 2)]);
        // Two guests that have the same there.
        let two = programs(vec![program("one"), program("two")]);
        assert_eq!(names(&two, &[address]), [told("guest", &page, 1)]);
        // The kernel's is never a guest's, whatever is between.
        let kernel = u64::MAX - 0xfff;
        assert_eq!(
            names(&one, &[address, kernel, kernel, address]),
            [told("kernel", "?", 2), told("one", "landmark", 2)]
        );
    }

    #[test]
    fn a_library_s_instructions_are_its_user_s() {
        let function = |name: &str| Function {
            program: "kernel".to_owned(),
            name: name.to_owned(),
            file: String::new(),
        };
        let named = |list: &[(&str, bool)]| {
            let list = list.iter().map(|&(name, is_own)| (function(name), is_own));
            innermost(list.collect()).map(|function| function.name)
        };
        let library = ("load", false);
        let own = [library, ("get", true), ("run", true)];
        assert_eq!(named(&own).as_deref(), Some("get"));
        assert_eq!(named(&[library, ("copy", false)]).as_deref(), Some("load"));
        assert_eq!(named(&[]), None);
    }

    #[test]
    fn the_file_of_a_guest_s_instruction_is_known() {
        let (file, moved) = this_program();
        let address = landmark as fn(u64) -> u64 as usize as u64 - moved;
        let program = |name| Program::new(name, &file).unwrap();
        let root = crate::workspace::source_root();
        let programs = Programs::new(program("kernel"), vec![program("one")], &root);
        let here = "xtask/src/bench/profile/functions.rs";
        assert!(programs.is_from(here, "one", address));
        assert!(!programs.is_from("xtask/src/main.rs", "one", address));
        assert!(!programs.is_from(here, "two", address));
        assert!(!programs.is_from(here, "one", u64::MAX));
    }

    #[test]
    fn the_table_begins_with_the_most() {
        let function = |program: &str, name: &str, file: &str| Function {
            program: program.to_owned(),
            name: name.to_owned(),
            file: file.to_owned(),
        };
        let counts = BTreeMap::from([
            (function("bench", "main", "guests/bench/src/main.rs"), 10),
            (function("guest", "code at 0x100000", ""), 5),
            (function("kernel", "run", "kernel/src/virt/svm/vcpu.rs"), 25),
        ]);
        let mut out = Vec::new();
        table(&mut out, &counts).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "instructions   share  program  function          file\n          \
            25  62.5 %  kernel   run               kernel/src/virt/svm/vcpu.rs\n          \
            10  25.0 %  bench    main              guests/bench/src/main.rs\n           \
            5  12.5 %  guest    code at 0x100000\n"
        );
    }

    #[test]
    fn names_are_short() {
        assert_eq!(short("run<plinth_kernel::virt::svm::Svm>"), "run");
        assert_eq!(short("{closure#0}"), "{closure#0}");
        assert_eq!(short("plinth_kernel::main"), "main");
        assert_eq!(short("<A as b::C>::f"), "f");
        assert_eq!(end_of(Path::new("/a/core/src/mem/mod.rs")), "mem/mod.rs");
        assert_eq!(end_of(Path::new("")), "");
    }
}
