//! A domain: memory behind nested page tables, handles, a console, and what its vCPUs share.

use alloc::vec::Vec;
use core::ops::Range;

use plinth_abi::call::watch;
use plinth_abi::domain::{NAME, platform};
use plinth_abi::{DomainConfig, DomainInfo, DomainState, Handle, Reason, Status};

use super::{
    Access, Claim, ClaimKind, Console, Ending, Entry, Event, HandleTable, Kernel, Pc, Space, Vcpu,
};
use crate::log;
use crate::mem::guest::GuestMemoryError;
use crate::mem::{Amounts, Budget, Charge, Gpa, Hpa, Ref, reaper};
use crate::rules::cpuid::CpuidTable;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::trace::{self, Kind};
use crate::virt::Vendor;

/// Claims that can be made on one domain: each access looks through them.
const MOST_CLAIMS: usize = 256;
/// Objects or domains that one step of a domain's end looks at.
const STEP: usize = 64;

/// A guest and what belongs to it.
pub struct Domain<V: Vendor> {
    /// Unique since boot, never used again; at least 1.
    pub number: u32,
    /// The kernel that it lives in.
    pub kernel: &'static Kernel<V>,
    /// CPUID as all its vCPUs see it, but for what depends on the vCPU.
    pub cpuid: Ref<CpuidTable>,
    /// What its objects are charged to.
    pub budget: Ref<Budget>,
    /// vCPUs it can have.
    pub max_vcpus: u32,
    /// Where it is in its life, and its vCPUs.
    pub life: Mutex<Life<V>>,
    /// What it has besides as a PC.
    pub pc: Option<Pc>,
    /// vCPUs that have halted, and nothing that is known can wake them.
    pub halted: AtomicUsize,
    name: heapless::String<NAME>,
    hardware: V::Domain,
    nested_root: Hpa,
    /// `None` when it was destroyed.
    space: Mutex<Option<Space<V::Format>>>,
    handles: Mutex<Handles<V>>,
    console: Mutex<Console>,
    watch: Mutex<Watch<V>>,
    claims: Mutex<Claims<V>>,
    /// Claims there are, to be asked without the lock.
    claim_count: AtomicUsize,
    /// The reaper's ticket for what it gave up at its end.
    reaped_by: AtomicU64,
    /// It has claimed parts of other domains.
    pub claims_made: AtomicBool,
    /// It drives the serial port that is the log's otherwise.
    pub has_serial: AtomicBool,
    /// Of its own map of ports.
    ports_charge: Mutex<Option<Charge>>,
    /// Its console appears in the kernel's log: for the first domain, which nobody else listens to.
    logs: bool,
    _charge: Charge,
}

/// Who is told of what happens to a domain.
struct Watch<V: Vendor> {
    /// The event, and for what it is signalled.
    event: Option<(Ref<Event<V>>, u64)>,
    /// The domain is being destroyed.
    is_closed: bool,
}

/// Who serves the domain's devices.
struct Claims<V: Vendor> {
    list: Vec<Claim<V>>,
    /// The domain is being destroyed.
    is_closed: bool,
}

impl<V: Vendor> Claims<V> {
    /// The claim that an address belongs to. Who is asked for now is asked for again: it is the first to be looked at then.
    fn find(&mut self, kind: ClaimKind, address: u64) -> Option<&Claim<V>> {
        let is_it = |claim: &Claim<V>| claim.kind == kind && claim.range.contains(&address);
        let at = self.list.iter().position(is_it)?;
        if at != 0 {
            self.list.swap(0, at);
        }
        self.list.first()
    }
}

struct Handles<V: Vendor> {
    table: HandleTable<Entry<V>>,
    charge: Charge,
}

/// A domain's life.
pub struct Life<V: Vendor> {
    /// Where it is.
    pub state: DomainState,
    /// Its vCPUs, by index.
    pub vcpus: Vec<Ref<Vcpu<V>>>,
    /// vCPUs that are not over.
    pub alive: usize,
    /// Why it ended, which vCPU made it so, and RIP of that.
    pub ending: Option<(Ending, u32, u64)>,
    /// How far its end has come.
    teardown: Teardown,
    /// Whoever asked for its destruction has been told that it is complete.
    told_destroyed: bool,
}

/// The steps of a domain's end, in their order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Teardown {
    Handles,
    Vcpus,
    Space,
    Done,
}

impl<V: Vendor> Domain<V> {
    /// Bytes of heap that one costs at its making.
    const COST: u64 = Ref::<Self>::COST + Ref::<Budget>::COST + 2 * size_of::<Ref<Self>>() as u64;

    /// A domain without memory and vCPUs. `logs`: its console appears in the kernel's log.
    ///
    /// # Errors
    /// `OVER_BUDGET`, `NO_MEMORY`.
    pub fn new(
        kernel: &'static Kernel<V>,
        number: u32,
        name: &str,
        config: &DomainConfig,
        budget: Ref<Budget>,
        logs: bool,
    ) -> Result<Ref<Self>, Status> {
        Self::with_space_of(kernel, number, name, config, budget, logs, |budget| {
            let space = Space::new(number, budget);
            space.map(Some).ok_or(Status::NO_MEMORY)
        })
    }

    /// As [`Domain::new`], with the address space that `space` makes.
    pub(crate) fn with_space_of(
        kernel: &'static Kernel<V>,
        number: u32,
        name: &str,
        config: &DomainConfig,
        budget: Ref<Budget>,
        logs: bool,
        space: impl FnOnce(&Ref<Budget>) -> Result<Option<Space<V::Format>>, Status>,
    ) -> Result<Ref<Self>, Status> {
        let charge = Charge::new(&budget, Amounts::heap(Self::COST))?;
        let handles_charge = Charge::new(&budget, Amounts::default())?;
        let hardware = V::new_domain().map_err(|_| Status::NO_MEMORY)?;
        let is_pc = config.platform & platform::PC != 0;
        let cpuid = kernel.cpuid(config.vcpus, is_pc)?;
        let space = space(&budget)?;
        let nested_root = space.as_ref().map(Space::root).unwrap_or_default();
        let mut kept = heapless::String::new();
        // The name is at most that long.
        let _ = kept.push_str(name);
        let new = Ref::new(Self {
            number,
            kernel,
            cpuid,
            budget,
            max_vcpus: config.vcpus,
            life: Mutex::new(Life {
                state: DomainState::CREATED,
                vcpus: Vec::new(),
                alive: 0,
                ending: None,
                teardown: Teardown::Handles,
                told_destroyed: false,
            }),
            pc: is_pc.then(|| Pc::new(config.wall_clock)),
            halted: AtomicUsize::new(0),
            name: kept,
            hardware,
            nested_root,
            space: Mutex::new(space),
            handles: Mutex::new(Handles {
                table: HandleTable::new(config.handles),
                charge: handles_charge,
            }),
            console: Mutex::default(),
            watch: Mutex::new(Watch {
                event: None,
                is_closed: false,
            }),
            claims: Mutex::new(Claims {
                list: Vec::new(),
                is_closed: false,
            }),
            claim_count: AtomicUsize::new(0),
            reaped_by: AtomicU64::new(0),
            claims_made: AtomicBool::new(false),
            has_serial: AtomicBool::new(false),
            ports_charge: Mutex::new(None),
            logs,
            _charge: charge,
        })
        .map_err(|_| Status::NO_MEMORY)?;
        trace::record(Kind::CREATED, number, 0, 0);
        Ok(new)
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

    /// Copies from guest-physical memory that is mapped readable.
    pub fn read_guest(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), GuestMemoryError> {
        self.with_space(|space| space.view().read_bytes(gpa, out))
            .unwrap_or(Err(GuestMemoryError::NotMapped(gpa)))
    }

    /// Copies into guest-physical memory that is mapped writable.
    pub fn write_guest(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), GuestMemoryError> {
        self.with_space(|space| space.view().write_bytes(gpa, bytes))
            .unwrap_or(Err(GuestMemoryError::NotMapped(gpa)))
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

    /// Calls `f` with the domain's address space, held for the time of the call; `None` when it was destroyed.
    pub fn with_space<R>(&self, f: impl FnOnce(&mut Space<V::Format>) -> R) -> Option<R> {
        self.space.lock().as_mut().map(f)
    }

    /// Copies into one page of its memory, whatever it may do there itself.
    ///
    /// # Errors
    /// `BAD_ADDRESS` where nothing is mapped.
    pub fn put(&self, gpa: u64, bytes: &[u8]) -> Result<(), Status> {
        self.with_space(|space| space.put(Gpa::new(gpa), bytes))
            .unwrap_or(Err(Status::BAD_ADDRESS))
    }

    // Handles.

    /// Calls `f` with what a handle names.
    ///
    /// # Errors
    /// `BAD_HANDLE`.
    pub fn with_handle<R>(&self, handle: u64, f: impl FnOnce(&Entry<V>) -> R) -> Result<R, Status> {
        let handle = u32::try_from(handle).map_err(|_| Status::BAD_HANDLE)?;
        let handles = self.handles.lock();
        handles
            .table
            .get(Handle(handle))
            .map(f)
            .ok_or(Status::BAD_HANDLE)
    }

    /// Promises a place for [`Domain::add_handle`], or for [`Domain::release_handle`] to give it back.
    ///
    /// # Errors
    /// `OVER_BUDGET`, `NO_MEMORY`.
    pub fn reserve_handle(&self) -> Result<(), Status> {
        let mut handles = self.handles.lock();
        let growth = handles.table.growth()?;
        if growth != 0 {
            let bytes = growth as u64 * HandleTable::<Entry<V>>::PLACE;
            handles.charge.add(Amounts::heap(bytes))?;
            if let Err(why) = handles.table.grow(growth) {
                handles.charge.reduce(Amounts::heap(bytes));
                return Err(why);
            }
        }
        handles.table.reserve();
        Ok(())
    }

    /// Gives a promised place back.
    pub fn release_handle(&self) {
        self.handles.lock().table.release();
    }

    /// Adds a handle in a promised place.
    ///
    /// # Errors
    /// `OVER_BUDGET` where the domain was destroyed meanwhile.
    pub fn add_handle(&self, entry: Entry<V>) -> Result<Handle, Status> {
        self.handles
            .lock()
            .table
            .add(entry)
            .ok_or(Status::OVER_BUDGET)
    }

    /// Takes a handle out. What it named is dropped by the caller, when no lock is held.
    ///
    /// # Errors
    /// `BAD_HANDLE`.
    pub fn remove_handle(&self, handle: u64) -> Result<Entry<V>, Status> {
        let handle = u32::try_from(handle).map_err(|_| Status::BAD_HANDLE)?;
        let mut handles = self.handles.lock();
        handles
            .table
            .remove(Handle(handle))
            .ok_or(Status::BAD_HANDLE)
    }

    // Console and watch.

    /// Writes to the console: how many bytes were taken.
    pub fn write_console(&self, bytes: &[u8]) -> usize {
        let watched = self.watched(watch::CONSOLE);
        let taken = {
            let mut console = self.console.lock();
            if self.logs {
                log::guest_text(&self.name, bytes);
            }
            console.write(bytes, watched.is_some() && !self.logs)
        };
        if let Some(event) = watched.filter(|_| taken != 0) {
            event.signal();
        }
        taken
    }

    /// Calls `f` with the console, held for the time of the call.
    pub fn with_console<R>(&self, f: impl FnOnce(&mut Console) -> R) -> R {
        f(&mut self.console.lock())
    }

    fn watched(&self, what: u64) -> Option<Ref<Event<V>>> {
        let watch = self.watch.lock();
        watch
            .event
            .as_ref()
            .filter(|(_, mask)| mask & what != 0)
            .map(|(event, _)| event.clone())
    }

    /// Signals an event when one of the things of `mask` happens, or has happened; `None`: no more.
    ///
    /// # Errors
    /// `WRONG_STATE` where it is being destroyed.
    pub fn set_watch(&self, event: Option<(Ref<Event<V>>, u64)>) -> Result<(), Status> {
        let old = {
            let mut watch = self.watch.lock();
            if watch.is_closed {
                return Err(Status::WRONG_STATE);
            }
            core::mem::replace(&mut watch.event, event.clone())
        };
        drop(old);
        let Some((event, mask)) = event else {
            return Ok(());
        };
        let ended = self.is_over();
        let wrote = self.console.lock().end() != 0;
        if mask & watch::ENDED != 0 && ended || mask & watch::CONSOLE != 0 && wrote {
            event.signal();
        }
        Ok(())
    }

    // Devices.

    /// Adds a claim.
    ///
    /// # Errors
    /// `EXISTS` where part of it is claimed or mapped, `NO_MEMORY`.
    pub fn add_claim(&self, claim: Claim<V>) -> Result<(), Status> {
        let mut claims = self.claims.lock();
        if claims.is_closed {
            return Err(Status::WRONG_STATE);
        }
        let claims = &mut claims.list;
        if claims.len() >= MOST_CLAIMS {
            return Err(Status::OVER_BUDGET);
        }
        if claims
            .iter()
            .any(|other| other.overlaps(claim.kind, &claim.range))
        {
            return Err(Status::EXISTS);
        }
        if claim.kind == ClaimKind::Mmio {
            let Range { start, end } = claim.range;
            if self
                .with_space(|space| space.is_any_mapped(start, end))
                .unwrap_or(true)
            {
                return Err(Status::EXISTS);
            }
        }
        claims.try_reserve(1).map_err(|_| Status::NO_MEMORY)?;
        claims.push(claim);
        self.claim_count.store(claims.len(), Ordering::Release);
        Ok(())
    }

    /// Whether part of the range is claimed.
    pub fn is_claimed(&self, kind: ClaimKind, range: &Range<u64>) -> bool {
        self.claims
            .lock()
            .list
            .iter()
            .any(|claim| claim.overlaps(kind, range))
    }

    /// Tells whoever claimed it of an access by a vCPU of this domain; whether there is somebody.
    pub fn tell_claimer(&self, kind: ClaimKind, vcpu: &Vcpu<V>, access: &Access) -> bool {
        if self.claim_count.load(Ordering::Acquire) == 0 {
            return false;
        }
        self.claims
            .lock()
            .find(kind, access.address)
            .is_some_and(|claim| claim.tell(vcpu, access).is_ok())
    }

    /// Whether somebody has claimed the address.
    pub fn has_claim(&self, kind: ClaimKind, address: u64) -> bool {
        self.claim_count.load(Ordering::Acquire) != 0
            && self.is_claimed(kind, &(address..address + 1))
    }

    /// The data of a string access that the claimer of the address left for this vCPU.
    pub fn claimer_data(
        &self,
        kind: ClaimKind,
        address: u64,
        vcpu: &Vcpu<V>,
    ) -> Option<[u8; plinth_abi::device::DATA]> {
        let mut claims = self.claims.lock();
        claims.find(kind, address).map(|claim| claim.data(vcpu))
    }

    /// Ends the claim that begins at `first`.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn release(&self, kind: ClaimKind, first: u64) -> Result<(), Status> {
        self.release_one(|claim| claim.kind == kind && claim.range.start == first)
            .then_some(())
            .ok_or(Status::NOT_FOUND)
    }

    /// Ends a claim that is meant; whether there was one. Accesses that wait for it go on as if it had never been.
    fn release_one(&self, is_meant: impl Fn(&Claim<V>) -> bool) -> bool {
        let claim = {
            let claims = &mut self.claims.lock().list;
            let Some(at) = claims.iter().position(is_meant) else {
                return false;
            };
            let claim = claims.swap_remove(at);
            self.claim_count.store(claims.len(), Ordering::Release);
            claim
        };
        for index in 0..self.max_vcpus {
            let vcpu = self.vcpu(index);
            if let Some(vcpu) = vcpu {
                vcpu.abandon(claim.id);
            }
        }
        true
    }

    // Life.

    /// The vCPU with this index.
    pub fn vcpu(&self, index: u32) -> Option<Ref<Vcpu<V>>> {
        self.life.lock().vcpus.get(index as usize).cloned()
    }

    /// The vCPU with this index, of a domain that is not destroyed.
    ///
    /// # Errors
    /// `WRONG_STATE` where it is, `NOT_FOUND` where there is no such vCPU.
    pub fn living_vcpu(&self, index: u32) -> Result<Ref<Vcpu<V>>, Status> {
        let life = self.life.lock();
        if life.state == DomainState::DESTROYED {
            return Err(Status::WRONG_STATE);
        }
        let vcpu = life.vcpus.get(index as usize);
        vcpu.cloned().ok_or(Status::NOT_FOUND)
    }

    /// Where it is in its life.
    pub fn state(&self) -> DomainState {
        self.life.lock().state
    }

    /// Whether it has ended, or is being destroyed.
    pub fn is_over(&self) -> bool {
        matches!(self.state(), DomainState::ENDED | DomainState::DESTROYED)
    }

    /// Lets it use ports directly, from the next time on that one of its vCPUs takes a CPU.
    ///
    /// # Errors
    /// `OVER_BUDGET`, `NO_MEMORY`.
    pub fn allow_ports(&self, first: u16, count: u16) -> Result<(), Status> {
        let mut charge = self.ports_charge.lock();
        if charge.is_none() {
            *charge = Some(Charge::new(
                &self.budget,
                Amounts::frames(V::FRAMES_FOR_PORTS),
            )?);
        }
        V::allow_ports(&self.hardware, first, count).map_err(|_| Status::NO_MEMORY)
    }

    /// What `DOMAIN_INFO` tells.
    pub fn info(&self) -> DomainInfo {
        let (used, limit) = self.budget.amounts();
        let (handles, max_handles) = {
            let handles = self.handles.lock();
            (handles.table.used(), handles.table.max())
        };
        let console_end = self.console.lock().end();
        let mut name = [0; NAME];
        for (to, from) in name.iter_mut().zip(self.name.as_bytes()) {
            *to = *from;
        }
        let life = self.life.lock();
        let (reason, info) = life
            .ending
            .map_or((Reason::NONE, [0; 3]), |(ending, ..)| ending.as_told());
        let (ended_vcpu, rip) = life.ending.map_or((0, 0), |(_, vcpu, rip)| (vcpu, rip));
        DomainInfo {
            name,
            number: self.number,
            state: life.state,
            reason,
            ended_vcpu,
            info,
            rip,
            vcpus: life.vcpus.len() as u32,
            max_vcpus: self.max_vcpus,
            handles,
            max_handles,
            frames: used.frames,
            max_frames: limit.frames,
            memory_frames: used.memory_frames,
            heap: used.heap,
            max_heap: limit.heap,
            console_end,
        }
    }
}

impl<V: Vendor> Ref<Domain<V>> {
    /// Adds a vCPU.
    ///
    /// # Errors
    /// `WRONG_STATE` where it was started, `OVER_BUDGET`, `NO_MEMORY`.
    pub fn add_vcpu(&self) -> Result<Ref<Vcpu<V>>, Status> {
        let index = {
            let mut life = self.life.lock();
            if life.state != DomainState::CREATED {
                return Err(Status::WRONG_STATE);
            }
            if life.vcpus.len() as u32 >= self.max_vcpus {
                return Err(Status::OVER_BUDGET);
            }
            life.vcpus
                .try_reserve_exact(1)
                .map_err(|_| Status::NO_MEMORY)?;
            life.vcpus.len() as u32
        };
        let vcpu = Vcpu::new(self, index)?;
        let mut life = self.life.lock();
        // Another CPU may have been here meanwhile.
        if life.state != DomainState::CREATED
            || life.vcpus.len() as u32 != index
            || life.vcpus.len() == life.vcpus.capacity()
        {
            drop(life);
            return Err(Status::WRONG_STATE);
        }
        life.vcpus.push(vcpu.clone());
        life.alive += 1;
        Ok(vcpu)
    }

    /// Lets its vCPUs run, from one state to the next.
    ///
    /// # Errors
    /// `WRONG_STATE` where it is not in state `from`, or has no vCPU.
    pub fn let_run(&self, from: DomainState) -> Result<(), Status> {
        let mut life = self.life.lock();
        if life.state != from || life.vcpus.is_empty() {
            return Err(Status::WRONG_STATE);
        }
        life.state = DomainState::RUNNING;
        let kind = if from == DomainState::CREATED {
            Kind::STARTED
        } else {
            Kind::RESUMED
        };
        trace::record(kind, self.number, 0, 0);
        for vcpu in &life.vcpus {
            self.kernel.sched.release(vcpu);
        }
        Ok(())
    }

    /// Holds its vCPUs.
    ///
    /// # Errors
    /// `WRONG_STATE` where it does not run.
    pub fn pause(&self) -> Result<(), Status> {
        let mut life = self.life.lock();
        if life.state != DomainState::RUNNING {
            return Err(Status::WRONG_STATE);
        }
        life.state = DomainState::PAUSED;
        trace::record(Kind::PAUSED, self.number, 0, 0);
        for vcpu in &life.vcpus {
            self.kernel.sched.hold(vcpu);
        }
        Ok(())
    }

    /// Ends it. `vcpu` is the index of the one that made it so, at `rip`.
    ///
    /// # Errors
    /// `WRONG_STATE` where it is over already.
    pub fn end(&self, ending: Ending, vcpu: u32, rip: u64) -> Result<(), Status> {
        let mut life = self.life.lock();
        if matches!(life.state, DomainState::ENDED | DomainState::DESTROYED) {
            return Err(Status::WRONG_STATE);
        }
        life.state = DomainState::ENDED;
        life.ending = Some((ending, vcpu, rip));
        let mut left = 0;
        for vcpu in &life.vcpus {
            left += usize::from(!self.kernel.sched.finish(vcpu));
        }
        life.alive = left;
        drop(life);
        if left == 0 {
            self.ended();
        }
        Ok(())
    }

    /// A vCPU that `end` found running has left its CPU, at `rip`.
    pub fn vcpu_left(&self, vcpu: u32, rip: u64) {
        let mut life = self.life.lock();
        if let Some((Ending::Killed, index, place)) = &mut life.ending
            && *index == vcpu
        {
            *place = rip;
        }
        life.alive = life.alive.saturating_sub(1);
        let last = life.alive == 0;
        drop(life);
        if last {
            self.ended();
        }
    }

    /// A vCPU has halted, and nothing that is known can wake it. With the last one the domain ends.
    pub fn vcpu_halted(&self, vcpu: u32, rip: u64) {
        let vcpus = self.life.lock().vcpus.len();
        if self.halted.load(Ordering::Acquire) == vcpus {
            // A domain that is over already has a reason.
            let _ = self.end(Ending::Halted, vcpu, rip);
        }
    }

    /// No vCPU runs any more.
    fn ended(&self) {
        let ending = self.life.lock().ending;
        for index in 0..self.max_vcpus {
            if let Some(vcpu) = self.vcpu(index) {
                vcpu.close_events();
            }
        }
        self.take_serial_back();
        if self.claims_made.load(Ordering::Acquire) {
            self.end_claims();
        }
        if let Some((ending, _, rip)) = ending {
            ::log::info!(
                "domain {} \"{}\" ended: {ending}, rip {rip:#x}",
                self.number,
                self.name()
            );
            trace::record(Kind::ENDED, self.number, 0, ending.as_told().0.0);
            self.kernel.note_end(self);
        }
        if let Some(event) = self.watched(watch::ENDED) {
            event.signal();
        }
    }

    /// Takes back a bounded part of what it has, when it has ended or never ran. Whether all is done.
    ///
    /// # Errors
    /// `WRONG_STATE` where it runs; `AGAIN` where a vCPU is about to leave its CPU.
    pub fn destroy_step(&self) -> Result<bool, Status> {
        let step = {
            let mut life = self.life.lock();
            match life.state {
                DomainState::CREATED | DomainState::ENDED => {}
                DomainState::DESTROYED if !life.told_destroyed => {}
                _ => return Err(Status::WRONG_STATE),
            }
            if life.state == DomainState::CREATED {
                for vcpu in &life.vcpus {
                    self.kernel.sched.finish(vcpu);
                }
                life.alive = 0;
            }
            if life.alive != 0 {
                return Err(Status::AGAIN);
            }
            life.state = DomainState::DESTROYED;
            life.teardown
        };
        let next = match step {
            Teardown::Handles if self.close_some() => Teardown::Vcpus,
            Teardown::Vcpus => {
                self.drop_vcpus();
                Teardown::Space
            }
            Teardown::Space if self.reclaim_some() => {
                self.take_serial_back();
                self.reaped_by.store(reaper::ticket(), Ordering::Release);
                self.budget.close();
                self.kernel.forget(self);
                trace::record(Kind::DESTROYED, self.number, 0, 0);
                Teardown::Done
            }
            same => same,
        };
        let mut life = self.life.lock();
        // Another CPU may have come further.
        if life.teardown == step {
            life.teardown = next;
        }
        Ok(life.teardown == Teardown::Done)
    }

    /// Whether all memory that it gave up is back.
    pub fn is_reaped(&self) -> bool {
        reaper::is_past(self.reaped_by.load(Ordering::Acquire))
    }

    /// Whoever asked for its destruction is told that it is complete. From now on it is none to destroy.
    ///
    /// # Errors
    /// `WRONG_STATE` where somebody else was told.
    pub fn confirm_destroyed(&self) -> Result<(), Status> {
        let mut life = self.life.lock();
        let told = core::mem::replace(&mut life.told_destroyed, true);
        (!told).then_some(()).ok_or(Status::WRONG_STATE)
    }

    /// The log uses the serial port again, if this domain drove it.
    fn take_serial_back(&self) {
        if self.has_serial.swap(false, Ordering::AcqRel) {
            log::take_serial_back();
        }
    }

    /// Closes some of its handles; whether none is left.
    fn close_some(&self) -> bool {
        for _ in 0..STEP {
            // The entry is dropped when the table's lock is not held: its object may be this domain.
            let entry = self.handles.lock().table.pop();
            if entry.is_none() {
                let mut handles = self.handles.lock();
                // None can be added any more: a handle to the domain itself would keep it for ever.
                let old = core::mem::replace(&mut handles.table, HandleTable::new(0));
                let bytes = old.capacity() * HandleTable::<Entry<V>>::PLACE;
                handles.charge.reduce(Amounts::heap(bytes));
                drop(handles);
                let watched = {
                    let mut watch = self.watch.lock();
                    watch.is_closed = true;
                    watch.event.take()
                };
                drop(watched);
                return true;
            }
        }
        false
    }

    /// Ends the claims that it has on others, whose accesses go on as if nobody had claimed.
    fn end_claims(&self) {
        let mut after = 0;
        while let Some(other) = self.kernel.next_domain(after) {
            if !other.release_one(|claim| claim.claimer == self.number) {
                after = other.number;
            }
        }
    }

    /// Drops what ran, and the claims of others.
    fn drop_vcpus(&self) {
        let vcpus = core::mem::take(&mut self.life.lock().vcpus);
        for vcpu in &vcpus {
            let context = vcpu.context.lock().take();
            drop(context);
            vcpu.close_events();
        }
        let claims = {
            let mut claims = self.claims.lock();
            claims.is_closed = true;
            core::mem::take(&mut claims.list)
        };
        drop(claims);
        self.claim_count.store(0, Ordering::Release);
        // Tables that a CPU may still have cached become free from here on: each forgets them before it enters another guest.
        self.kernel.sched.flush_later();
    }

    /// Takes apart some of its address space; whether all of it is gone.
    fn reclaim_some(&self) -> bool {
        let done = self.with_space(|space| space.reclaim()).unwrap_or(true);
        if done {
            let space = self.space.lock().take();
            if let Some(space) = space {
                space.destroy();
            }
        }
        done
    }
}

impl<V: Vendor> Drop for Domain<V> {
    fn drop(&mut self) {
        self.kernel.release_cpuid(&self.cpuid);
        // One that could not be listed has its empty address space still. Nobody has ever used it.
        if let Some(space) = self.space.get_mut().take() {
            space.destroy();
        }
    }
}
