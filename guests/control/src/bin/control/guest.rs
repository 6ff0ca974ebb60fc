//! A domain, as the control guest keeps it.

use alloc::rc::Rc;
use alloc::string::String;

use embassy_time::Instant;
use plinth_guest_control::config::Machine;
use plinth_guest_control::ending::{Cause, Ending};
use plinth_guest_control::report::name;
use plinth_guest_control::ring::Ring;
use plinth_rt::abi::call::{STREAM_MAX, watch};
use plinth_rt::abi::{DomainInfo, VcpuInfo};
use plinth_rt::object::{Domain, Event, Result, Vcpu};

use plinth_devices::Power;

use crate::device::{Answer, Devices};
use crate::heap;

/// Pages of console output that are taken at a time, so that one domain does not hold up the others.
const PAGES: usize = 4;

/// Who wanted a domain to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Nobody: the policy applies in full.
    No,
    /// `stop`: it is not restarted.
    Stop,
    /// `kill`: it stays as it is.
    Kill,
}

/// What serving a domain's devices led to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Served {
    /// There is new output.
    pub wrote: bool,
    /// A line of it is complete.
    pub ended_line: bool,
    /// A device may want to be looked at at another time.
    pub moved: bool,
    /// An answer that is still to be given.
    pub answer: Option<Answer>,
}

/// A domain.
pub struct Guest {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// A handle to it with all rights.
    pub domain: Domain,
    event: Event,
    /// The machine that it was made of, by name; `None` where nothing is known of it.
    pub machine: Option<(String, Rc<Machine>)>,
    /// What it wrote to its console.
    pub console: Ring,
    /// Stream position of what is to be taken next of the kernel's ring.
    position: u64,
    /// When it was started, as far as is known.
    pub started: Option<Instant>,
    /// How often in a row it, or the one that it replaces, has ended soon after its start.
    pub quick_ends: u32,
    /// Who wanted it to end.
    pub asked: Asked,
    /// When to look next whether it has used up its time; `None` while it does not run, or has no limit.
    pub next_check: Option<Instant>,
    /// Whether it was killed for its time limit.
    pub limited: bool,
    /// Its end.
    pub ending: Option<Ending>,
    /// Whether a `run` or the batch tells of its end and takes it back.
    pub is_run: bool,
    /// Its devices that are served here.
    pub devices: Option<Devices>,
    /// What it wanted of its machine, for which it was ended.
    pub power: Option<Power>,
}

impl Guest {
    /// Watches a domain: `event`, which is bound, tells when there is something to look at.
    pub fn new(
        info: &DomainInfo,
        domain: Domain,
        event: Event,
        machine: Option<(String, Rc<Machine>)>,
    ) -> Result<Self> {
        domain.watch(event, watch::ALL)?;
        Ok(Self {
            number: info.number,
            name: name(info),
            domain,
            event,
            machine,
            console: Ring::default(),
            position: 0,
            started: None,
            quick_ends: 0,
            asked: Asked::No,
            next_check: None,
            limited: false,
            ending: None,
            is_run: false,
            devices: None,
            power: None,
        })
    }

    /// What its machine's file says.
    pub fn config(&self) -> Option<&Machine> {
        self.machine.as_ref().map(|(_, machine)| &**machine)
    }

    /// Its time limit is to be looked at, for it runs from now on.
    pub fn runs(&mut self) {
        let limit = self.config().and_then(|machine| machine.time_limit);
        self.next_check = limit.map(|_| Instant::now());
    }

    /// Why it was killed, if that was not the operator's wish.
    pub fn cause(&self) -> Option<Cause> {
        match self.power {
            Some(Power::Off) => Some(Cause::PowerOff),
            Some(Power::Reset) => Some(Cause::Reset),
            Some(Power::Exit(status)) => Some(Cause::Exit(status)),
            None => self.limited.then_some(Cause::TimeLimit),
        }
    }

    /// Takes new console output; whether there is more.
    pub fn take_output(&mut self) -> Result<bool> {
        let mut buffer = [0; STREAM_MAX as usize];
        for _ in 0..PAGES {
            let (header, bytes) = self.domain.console(&mut buffer, self.position)?;
            if let Some(lost) = header
                .start
                .checked_sub(self.position)
                .filter(|&lost| lost > 0)
            {
                let note = alloc::format!("\n[{lost} bytes of output are lost]\n");
                self.keep(note.as_bytes());
            }
            self.keep(bytes);
            self.position = header.start + bytes.len() as u64;
            if bytes.is_empty() || self.position >= header.end {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Serves the accesses to its devices that wait.
    pub fn serve_devices(&mut self) -> Served {
        let Some(devices) = &mut self.devices else {
            return Served::default();
        };
        let (moved, answer) = devices.serve();
        let (output, power) = (devices.take_output(), devices.power());
        if !output.is_empty() {
            self.keep(&output);
        }
        if let Some(power) = power.filter(|_| self.power.is_none())
            && self.domain.kill().is_ok()
        {
            self.power = Some(power);
        }
        Served {
            wrote: !output.is_empty(),
            ended_line: output.contains(&b'\n'),
            moved,
            answer,
        }
    }

    /// Types into its console; how many bytes there was room for.
    pub fn type_in(&mut self, bytes: &[u8]) -> Result<usize> {
        match self
            .devices
            .as_mut()
            .and_then(|devices| devices.type_in(bytes))
        {
            Some(taken) => Ok(taken),
            None => self.domain.type_in(bytes),
        }
    }

    /// Adds to its console.
    pub fn keep(&mut self, output: &[u8]) {
        self.console.push(output, heap::is_ample());
    }

    /// Ends the watch and closes the handles.
    pub fn close(self) -> Ring {
        // The handles are there, and nothing depends on them any more.
        let _ = self.event.any().close();
        let _ = self.domain.any().close();
        self.console
    }
}

/// Does something with a vCPU of a domain.
pub fn with_vcpu<T>(domain: Domain, index: u32, what: impl FnOnce(Vcpu) -> Result<T>) -> Result<T> {
    let vcpu = domain.open_vcpu(index)?;
    let result = what(vcpu);
    vcpu.any().close()?;
    result
}

/// The times and counters of a domain's vCPUs, and what the domain is.
pub fn vcpu_infos(domain: Domain) -> Result<(DomainInfo, alloc::vec::Vec<VcpuInfo>)> {
    let info = domain.info()?;
    let vcpus = (0..info.vcpus).map(|index| with_vcpu(domain, index, Vcpu::info));
    Ok((info, vcpus.collect::<Result<_>>()?))
}
