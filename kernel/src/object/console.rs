//! A domain's console: the last of what it wrote, and what was typed for it. Pure.

use crate::log::ring::Ring;

/// Bytes of output that are kept.
const OUTPUT: usize = 4096;
/// Bytes of input that can wait.
const INPUT: usize = 256;

/// The console of one domain.
pub struct Console {
    output: Ring<OUTPUT>,
    /// Stream position up to which somebody has read.
    read: u64,
    input: heapless::Deque<u8, INPUT>,
}

impl Default for Console {
    fn default() -> Self {
        Self {
            output: Ring::new(),
            read: 0,
            input: heapless::Deque::new(),
        }
    }
}

impl Console {
    /// Takes output; how many bytes. With a reader no more than what it has read makes room for; without, the oldest is lost.
    pub fn write(&mut self, bytes: &[u8], has_reader: bool) -> usize {
        let room = if has_reader {
            OUTPUT.saturating_sub((self.output.end() - self.read.min(self.output.end())) as usize)
        } else {
            bytes.len()
        };
        let taken = bytes.get(..bytes.len().min(room)).unwrap_or(bytes);
        self.output.write(taken);
        taken.len()
    }

    /// Copies output from a stream position on; the position of the first byte, and how many.
    pub fn read(&mut self, position: u64, out: &mut [u8]) -> (u64, usize) {
        let (start, copied) = self.output.read(position, out);
        self.read = self.read.max(start + copied as u64);
        (start, copied)
    }

    /// Stream position of the next byte of output.
    pub fn end(&self) -> u64 {
        self.output.end()
    }

    /// Takes input; how many bytes.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        bytes
            .iter()
            .take_while(|byte| self.input.push_back(**byte).is_ok())
            .count()
    }

    /// Gives input to the domain; how many bytes.
    pub fn take_input(&mut self, out: &mut [u8]) -> usize {
        let mut taken = 0;
        for place in out {
            let Some(byte) = self.input.pop_front() else {
                break;
            };
            *place = byte;
            taken += 1;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_loses_nothing() {
        let mut console = Console::default();
        let text = [b'x'; 300];
        let mut written = 0;
        while console.write(&text, true) == text.len() {
            written += text.len();
        }
        assert_eq!(console.end(), OUTPUT as u64, "full to the last byte");
        assert_eq!(console.write(&text, true), 0);
        let mut out = [0; 100];
        assert_eq!(console.read(0, &mut out), (0, 100));
        assert_eq!(console.write(&text, true), 100);
        assert!(written <= OUTPUT);
    }

    #[test]
    fn without_a_reader_the_oldest_is_lost() {
        let mut console = Console::default();
        assert_eq!(console.write(&[b'a'; OUTPUT], false), OUTPUT);
        assert_eq!(console.write(b"bc", false), 2);
        let mut out = [0; OUTPUT];
        assert_eq!(console.read(0, &mut out), (2, OUTPUT));
        assert_eq!(out.last_chunk(), Some(b"bc"));
    }

    #[test]
    fn input_waits_up_to_its_bound() {
        let mut console = Console::default();
        assert_eq!(console.type_in(&[7; 300]), INPUT);
        assert_eq!(console.type_in(b"x"), 0);
        let mut out = [0; 200];
        assert_eq!(console.take_input(&mut out), 200);
        assert_eq!(console.take_input(&mut out), 56);
        assert_eq!(console.take_input(&mut out), 0);
    }
}
