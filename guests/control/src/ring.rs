//! The last bytes of a console's output, by stream position.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Bytes that a ring keeps.
pub const CAPACITY: usize = 64 << 10;

/// A stream's last [`CAPACITY`] bytes. Grows as it is used.
#[derive(Debug, Default)]
pub struct Ring {
    bytes: VecDeque<u8>,
    /// Stream position of the first byte that is still there.
    start: u64,
}

impl Ring {
    /// Adds bytes; the oldest make room, and so do they where there is no memory to grow.
    pub fn push(&mut self, bytes: &[u8]) {
        let kept = bytes
            .get(bytes.len().saturating_sub(CAPACITY)..)
            .unwrap_or(bytes);
        let lost = bytes.len() - kept.len();
        let wanted = (self.bytes.len() + kept.len()).min(CAPACITY);
        let missing = wanted - self.bytes.len();
        let room = if self.bytes.try_reserve(missing).is_ok() {
            CAPACITY
        } else {
            self.bytes.capacity()
        };
        let kept = kept.get(kept.len().saturating_sub(room)..).unwrap_or(kept);
        let excess = (self.bytes.len() + kept.len()).saturating_sub(room);
        self.bytes.drain(..excess.min(self.bytes.len()));
        self.bytes.extend(kept);
        self.start += (excess + lost) as u64;
    }

    /// The stream position of the first byte that is still there.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The stream position behind the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// At most `most` bytes from a position on, and how many were missed because they are not there any more.
    pub fn read(&self, position: u64, most: usize) -> (u64, Vec<u8>) {
        let missed = self.start.saturating_sub(position);
        let offset = usize::try_from(position.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let bytes = self.bytes.iter().skip(offset).take(most).copied().collect();
        (missed, bytes)
    }

    /// The position at which the last `lines` lines begin. A line end that is the last byte begins none.
    pub fn tail(&self, lines: usize) -> u64 {
        let behind_last = usize::from(self.bytes.back() == Some(&b'\n'));
        let from = self
            .bytes
            .iter()
            .rev()
            .skip(behind_last)
            .enumerate()
            .filter(|&(_, &byte)| byte == b'\n')
            .nth(lines.saturating_sub(1))
            .map_or(self.bytes.len(), |(back, _)| back + behind_last);
        self.end() - from as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reader_goes_on_where_it_was() {
        let mut ring = Ring::default();
        ring.push(b"hello ");
        ring.push(b"world");
        assert_eq!(ring.read(0, 6), (0, b"hello ".to_vec()));
        assert_eq!(ring.read(6, 100), (0, b"world".to_vec()));
        assert_eq!(ring.read(11, 100), (0, vec![]));
        assert_eq!(ring.read(u64::MAX, 1), (0, vec![]));
        assert_eq!((ring.start(), ring.end()), (0, 11));
    }

    #[test]
    fn the_oldest_bytes_go_first() {
        let mut ring = Ring::default();
        ring.push(&[1; CAPACITY]);
        ring.push(b"xyz");
        assert_eq!((ring.start(), ring.end()), (3, CAPACITY as u64 + 3));
        assert_eq!(ring.read(0, 1), (3, vec![1]));
        assert_eq!(ring.read(CAPACITY as u64, 9), (0, b"xyz".to_vec()));
        ring.push(&[2; CAPACITY * 2 + 5]);
        assert_eq!(ring.end(), CAPACITY as u64 * 3 + 8);
        assert_eq!(ring.end() - ring.start(), CAPACITY as u64);
    }

    #[test]
    fn the_tail_is_whole_lines() {
        let mut ring = Ring::default();
        assert_eq!(ring.tail(2), 0);
        ring.push(b"one\ntwo\nthree\n");
        assert_eq!(ring.tail(1), 8);
        assert_eq!(ring.tail(2), 4);
        assert_eq!(ring.tail(9), 0);
        ring.push(b"rest");
        assert_eq!(ring.tail(1), 14);
        assert_eq!(ring.tail(2), 8);
    }

    proptest! {
        #[test]
        fn a_ring_is_the_end_of_the_stream(
            pushes in prop::collection::vec((any::<u8>(), 0usize..CAPACITY * 3 / 2), 0..6),
            back in 0usize..CAPACITY * 2,
        ) {
            let mut ring = Ring::default();
            let mut stream = Vec::new();
            for (byte, count) in pushes {
                let bytes = vec![byte; count];
                ring.push(&bytes);
                stream.extend(bytes);
            }
            prop_assert_eq!(ring.end(), stream.len() as u64);
            let position = stream.len().saturating_sub(back);
            let (missed, bytes) = ring.read(position as u64, usize::MAX);
            prop_assert_eq!(missed, (back.min(stream.len()) as u64).saturating_sub(CAPACITY as u64));
            prop_assert_eq!(&bytes, &stream[position + missed as usize..]);
        }
    }
}
