//! The guests that are started at boot, and how a domain is built from an ELF executable.
//!
//! An ordinary guest is a static 64-bit executable: its segments are copied to their physical addresses in RAM that
//! starts at guest-physical 0, and it starts in long mode over an identity map of the low GiB. An executable whose entry
//! is the reset vector is firmware: what lies at or above [`FIRMWARE`] is mapped there, and it starts as a CPU does after
//! reset. `docs/abi.md` tells the same to the authors of guests.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PT_LOAD};
use elf::endian::LittleEndian;
use plinth_abi::VcpuState;

use crate::mem::{Gpa, PAGE_SIZE, PageSize};
use crate::object::{BuildError, Domain, DomainId, Ending, Vcpu};
use crate::rules::cpuid::CpuidTable;
use crate::virt::Vendor;

/// How a guest of the fixed list is expected to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// With status 0.
    Success,
    /// By a triple fault.
    TripleFault,
    /// By touching memory that is not its own.
    NestedFault,
    /// By using up its time.
    OutOfTime,
}

impl Expected {
    /// Whether this ending is the expected one.
    pub const fn matches(self, ending: &Ending) -> bool {
        match self {
            Self::Success => matches!(ending, Ending::Status(0)),
            Self::TripleFault => matches!(ending, Ending::TripleFault),
            Self::NestedFault => matches!(ending, Ending::NestedFault(_)),
            Self::OutOfTime => matches!(ending, Ending::OutOfTime),
        }
    }
}

/// A guest to start at boot.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Its name; its image is the module `guests/NAME`.
    pub name: &'static str,
    /// RAM in bytes, a multiple of 4 KiB.
    pub ram: u64,
    /// Time that it may run, in milliseconds.
    pub budget_ms: u64,
    /// How it is expected to end.
    pub expected: Expected,
}

/// RAM of a guest that the list says nothing else of: 4 MiB.
const RAM: u64 = 4 << 20;

/// What runs at boot, in this order, unless the command line's `guests=` names others.
pub const LIST: [Guest; 6] = [
    Guest {
        name: "hello",
        ram: RAM,
        budget_ms: 10_000,
        expected: Expected::Success,
    },
    Guest {
        name: "spin",
        ram: RAM,
        budget_ms: 500,
        expected: Expected::OutOfTime,
    },
    Guest {
        name: "privileged",
        ram: RAM,
        budget_ms: 60_000,
        expected: Expected::Success,
    },
    Guest {
        name: "realmode",
        ram: RAM,
        budget_ms: 60_000,
        expected: Expected::Success,
    },
    Guest {
        name: "trespass",
        ram: RAM,
        budget_ms: 10_000,
        expected: Expected::NestedFault,
    },
    Guest {
        name: "crash",
        ram: RAM,
        budget_ms: 10_000,
        expected: Expected::TripleFault,
    },
];

/// What the list says of the guest called `name`; of one that is not listed: 4 MiB, a minute, and success.
pub fn listed(name: &str) -> Guest {
    LIST.into_iter()
        .find(|guest| guest.name == name)
        .unwrap_or(Guest {
            name: "",
            ram: RAM,
            budget_ms: 60_000,
            expected: Expected::Success,
        })
}

/// The guests that `names` (comma-separated) lists, or the whole list.
pub fn chosen(names: Option<&'static str>) -> Vec<Guest> {
    match names {
        None => LIST.to_vec(),
        Some(names) => names
            .split(',')
            .filter(|name| !name.is_empty())
            .map(|name| Guest {
                name,
                ..listed(name)
            })
            .collect(),
    }
}

/// Where firmware images begin, at the earliest: 1 MiB below 4 GiB.
const FIRMWARE: u64 = 0xfff0_0000;
/// The reset vector (SDM vol. 3 11.1.4): an executable that is entered there is firmware.
const RESET_VECTOR: u64 = 0xffff_fff0;
/// The identity map of an ordinary guest: three tables at the end of its RAM.
const TABLES: u64 = 3 * PAGE_SIZE;

/// The vCPU 0 of a new domain made of `image`, ready to run.
pub fn build<V: Vendor>(
    id: DomainId,
    guest: &Guest,
    image: &[u8],
    cpuid: CpuidTable,
    cpu: &mut V::Cpu,
) -> Result<Box<Vcpu<V>>, BuildError> {
    let domain = Domain::<V>::new(id, guest.name, cpuid)?;
    let state = match load(&domain, guest.ram, image) {
        Ok(state) => state,
        Err(why) => {
            domain.free();
            return Err(why);
        }
    };
    let domain = Arc::new(domain);
    let result = Vcpu::new(Arc::clone(&domain), domain.next_vcpu()).and_then(|mut vcpu| {
        vcpu.set_state(cpu, &state)
            .map_err(|why| BuildError::BadState(why.0))?;
        Ok(vcpu)
    });
    if result.is_err()
        && let Some(domain) = Arc::into_inner(domain)
    {
        domain.free();
    }
    result
}

/// Fills the domain's memory from the image, and says in which state it starts.
fn load<V: Vendor>(domain: &Domain<V>, ram: u64, image: &[u8]) -> Result<VcpuState, BuildError> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(image)
        .map_err(|_| BuildError::BadImage("not an ELF file"))?;
    if file.ehdr.e_machine != EM_X86_64 || file.ehdr.e_type != ET_EXEC {
        return Err(BuildError::BadImage("not a static x86-64 executable"));
    }
    domain.add_ram(Gpa::new(0), ram)?;
    let firmware = file.ehdr.e_entry == RESET_VECTOR;
    if firmware {
        domain.add_ram(Gpa::new(FIRMWARE), (1 << 32) - FIRMWARE)?;
    }
    let segments = file
        .segments()
        .ok_or(BuildError::BadImage("it has no program headers"))?;
    for segment in segments.iter().filter(|segment| segment.p_type == PT_LOAD) {
        let bytes = file
            .segment_data(&segment)
            .map_err(|_| BuildError::BadImage("a segment reaches beyond the end of the file"))?;
        if bytes.len() as u64 > segment.p_memsz {
            return Err(BuildError::BadImage(
                "a segment is larger in the file than in memory",
            ));
        }
        let start = Gpa::new(segment.p_paddr);
        // The rest of the segment is zero, as all of a new domain's memory is; it must lie in RAM all the same.
        let end = start
            .checked_add(segment.p_memsz)
            .ok_or(BuildError::BadImage("a segment's address wraps"))?;
        let limit = if firmware && start >= Gpa::new(FIRMWARE) {
            1 << 32
        } else {
            ram.saturating_sub(TABLES)
        };
        if end > Gpa::new(limit) {
            return Err(BuildError::BadImage(
                "a segment does not fit into the domain's RAM",
            ));
        }
        domain
            .write_guest(start, bytes)
            .map_err(|_| BuildError::BadImage("a segment does not fit into the domain's RAM"))?;
    }
    if firmware {
        return Ok(VcpuState::RESET);
    }
    let tables = ram
        .checked_sub(TABLES)
        .ok_or(BuildError::BadImage("too little RAM"))?;
    identity_map(domain, tables)?;
    let mut state = VcpuState::long_mode(file.ehdr.e_entry, tables, tables);
    state.rdi = ram;
    Ok(state)
}

/// Writes page tables at `at` (three pages) that map the low GiB to itself by 2 MiB pages.
fn identity_map<V: Vendor>(domain: &Domain<V>, at: u64) -> Result<(), BuildError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let write = |address: u64, entry: u64| {
        domain
            .write_guest(Gpa::new(address), &entry.to_le_bytes())
            .map_err(|_| BuildError::BadImage("too little RAM"))
    };
    write(at, (at + PAGE_SIZE) | PRESENT_WRITABLE)?;
    write(at + PAGE_SIZE, (at + 2 * PAGE_SIZE) | PRESENT_WRITABLE)?;
    for index in 0..512 {
        let page = index * PageSize::Size2M.bytes();
        write(
            at + 2 * PAGE_SIZE + index * 8,
            page | PRESENT_WRITABLE | LARGE,
        )?;
    }
    Ok(())
}
