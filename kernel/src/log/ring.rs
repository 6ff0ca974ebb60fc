//! A ring of the last bytes of a stream, read by stream position. Pure.

/// Keeps the last `N` bytes written.
pub struct Ring<const N: usize> {
    bytes: [u8; N],
    /// Bytes ever written: the stream position of the next one.
    end: u64,
}

impl<const N: usize> Ring<N> {
    /// An empty ring.
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            end: 0,
        }
    }

    /// Appends `text`, dropping the oldest bytes.
    pub fn write(&mut self, text: &[u8]) {
        for &byte in text {
            self.bytes[(self.end % N as u64) as usize] = byte;
            self.end += 1;
        }
    }

    /// The stream position after the last byte written.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Copies from stream position `from`, or from the oldest byte kept where that is later, into `out`. Returns the
    /// position of the first byte copied and the number of bytes.
    pub fn read(&self, from: u64, out: &mut [u8]) -> (u64, usize) {
        let oldest = self.end.saturating_sub(N as u64);
        let start = from.clamp(oldest, self.end);
        let len = usize::try_from(self.end - start)
            .unwrap_or(usize::MAX)
            .min(out.len());
        for (offset, slot) in out.iter_mut().take(len).enumerate() {
            *slot = self.bytes[((start + offset as u64) % N as u64) as usize];
        }
        (start, len)
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_overwritten_is_skipped() {
        let mut ring = Ring::<4>::new();
        ring.write(b"abcdef");
        let mut out = [0; 8];
        assert_eq!(ring.read(0, &mut out), (2, 4));
        assert_eq!(&out[..4], b"cdef");
    }

    #[test]
    fn positions_beyond_the_end_give_nothing() {
        let mut ring = Ring::<4>::new();
        ring.write(b"ab");
        assert_eq!(ring.read(99, &mut [0; 4]), (2, 0));
    }

    proptest! {
        #[test]
        fn reading_piecewise_gives_the_tail_of_the_stream(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20),
            step in 1usize..20,
        ) {
            let mut ring = Ring::<64>::new();
            for piece in &pieces {
                ring.write(piece);
            }
            let all: Vec<u8> = pieces.concat();
            let mut got = Vec::new();
            let mut from = 0;
            let mut out = vec![0; step];
            loop {
                let (start, len) = ring.read(from, &mut out);
                if len == 0 {
                    break;
                }
                got.extend_from_slice(&out[..len]);
                from = start + len as u64;
            }
            prop_assert_eq!(&got[..], &all[all.len().saturating_sub(64)..]);
        }
    }
}
