//! The kernel's log, as it grows.

use alloc::string::String;
use alloc::vec::Vec;

use plinth_guest_control::plain::Lines;
use plinth_rt::abi::call::STREAM_MAX;
use plinth_rt::object::{Result, System};

/// A reader of the log.
pub struct KernelLog {
    system: System,
    position: u64,
    lines: Lines,
}

impl KernelLog {
    /// From the oldest line on that is still there.
    pub fn from_start(system: System) -> Self {
        Self {
            system,
            position: 0,
            lines: Lines::default(),
        }
    }

    /// From what is logged next on.
    pub fn from_now(system: System) -> Self {
        let mut log = Self::from_start(system);
        let mut header = [0; 16];
        if let Ok((header, _)) = system.log(&mut header, u64::MAX) {
            log.position = header.end;
        }
        log
    }

    /// The lines that are complete, at most about a page of them; none when there are no more.
    pub fn next_lines(&mut self) -> Result<Vec<String>> {
        let mut buffer = [0; STREAM_MAX as usize];
        let (header, bytes) = self.system.log(&mut buffer, self.position)?;
        self.position = header.start + bytes.len() as u64;
        Ok(self.lines.feed(bytes))
    }
}
