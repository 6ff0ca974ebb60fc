//! A domain: memory behind nested page tables, and what its vCPUs share.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use spin::Mutex;

use super::Console;
use crate::arch::{errata, mtrr};
use crate::log;
use crate::mem::domain::{AddError, DomainMemory};
use crate::mem::guest::GuestMemoryError;
use crate::mem::nested::MapError;
use crate::mem::{Gpa, Hpa};
use crate::rules::cpuid::CpuidTable;
use crate::virt::Vendor;

/// A domain's number: unique since boot, never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomainId(pub u32);

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Longest name of a domain, in bytes.
const NAME: usize = 32;

/// A guest and what belongs to it.
pub struct Domain<V: Vendor> {
    /// Its number.
    pub id: DomainId,
    /// CPUID as all its vCPUs see it, but for what depends on the vCPU.
    pub cpuid: CpuidTable,
    name: heapless::String<NAME>,
    hardware: V::Domain,
    nested_root: Hpa,
    memory: Mutex<DomainMemory<V::Format>>,
    console: Mutex<Console>,
    next_vcpu: AtomicU32,
}

/// Why a domain could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BuildError {
    /// Too few frames or too little heap.
    NoMemory,
    /// The image is not what it should be.
    BadImage(&'static str),
    /// Its memory could not be mapped.
    Map(MapError),
    /// The initial state breaks a rule of the CPU's.
    BadState(&'static str),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => f.write_str("out of memory"),
            Self::BadImage(why) => write!(f, "bad image: {why}"),
            Self::Map(why) => write!(f, "its memory cannot be mapped: {why:?}"),
            Self::BadState(why) => write!(f, "bad initial state: {why}"),
        }
    }
}

impl<V: Vendor> Domain<V> {
    /// A domain without memory and vCPUs. `name` is cut to 32 bytes.
    pub fn new(id: DomainId, name: &str, cpuid: CpuidTable) -> Result<Self, BuildError> {
        let hardware = V::new_domain().map_err(|_| BuildError::NoMemory)?;
        let memory = DomainMemory::new(id.0).ok_or(BuildError::NoMemory)?;
        let mut kept = heapless::String::new();
        for letter in name.chars() {
            if kept.push(letter).is_err() {
                break;
            }
        }
        Ok(Self {
            id,
            cpuid,
            name: kept,
            hardware,
            nested_root: memory.root(),
            memory: Mutex::new(memory),
            console: Mutex::new(Console::default()),
            next_vcpu: AtomicU32::new(0),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The vendor's part.
    pub fn hardware(&self) -> &V::Domain {
        &self.hardware
    }

    /// Root of the nested page tables.
    pub fn nested_root(&self) -> Hpa {
        self.nested_root
    }

    /// The number for a new vCPU.
    pub fn next_vcpu(&self) -> u32 {
        self.next_vcpu.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds `len` bytes of zeroed RAM from `gpa` on.
    ///
    /// # Errors
    /// `NoMemory`, or `Map` where it does not fit.
    pub fn add_ram(&self, gpa: Gpa, len: u64) -> Result<(), BuildError> {
        self.memory
            .lock()
            .add_ram(gpa, len, &mtrr::memory_type, errata::largest_guest_page())
            .map_err(|why| match why {
                AddError::NoMemory => BuildError::NoMemory,
                AddError::Map(why) => BuildError::Map(why),
            })
    }

    /// Copies from guest-physical memory that is mapped readable.
    pub fn read_guest(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), GuestMemoryError> {
        self.memory.lock().view().read_bytes(gpa, out)
    }

    /// The four top entries of PAE paging at `cr3` (SDM vol. 3 5.4.1).
    ///
    /// # Errors
    /// Where they should be, if there is no memory.
    pub fn read_pdptes(&self, cr3: u64) -> Result<[u64; 4], Gpa> {
        const TABLE: u64 = 0xffff_ffe0;
        let gpa = Gpa::new(cr3 & TABLE);
        let mut bytes = [0; 32];
        self.read_guest(gpa, &mut bytes).map_err(|_| gpa)?;
        let (entries, _) = bytes.as_chunks::<8>();
        let mut loaded = [0; 4];
        for (to, from) in loaded.iter_mut().zip(entries) {
            *to = u64::from_le_bytes(*from);
        }
        Ok(loaded)
    }

    /// Copies into guest-physical memory that is mapped writable.
    pub fn write_guest(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), GuestMemoryError> {
        self.memory.lock().view().write_bytes(gpa, bytes)
    }

    /// Calls `f` with the domain's memory, held for the time of the call.
    pub fn with_memory<R>(&self, f: impl FnOnce(&DomainMemory<V::Format>) -> R) -> R {
        f(&self.memory.lock())
    }

    /// Writes to the console; whole lines appear in the log.
    pub fn write_console(&self, bytes: &[u8]) {
        self.console
            .lock()
            .write(bytes, |line| log::guest_line(&self.name, line));
    }

    /// Shows what the guest wrote last without ending the line.
    pub fn finish_console(&self) {
        self.console
            .lock()
            .finish(|line| log::guest_line(&self.name, line));
    }

    /// Gives back every frame. No CPU may run the domain any more, and every CPU has to have flushed what it cached of it.
    pub fn free(self) {
        self.memory.into_inner().free();
    }
}
