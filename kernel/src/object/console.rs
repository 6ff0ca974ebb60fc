//! A domain's console: collects what the guest writes and passes it on in whole lines.
//!
//! Lines of two domains never mix, whatever the pieces in which they come. A line longer than the buffer is cut in two.

/// Longest line in bytes.
const LINE: usize = 240;

/// The line that is being collected.
#[derive(Debug, Default)]
pub struct Console {
    line: heapless::Vec<u8, LINE>,
}

impl Console {
    /// Takes bytes; `out` gets every line that they complete, without its end.
    pub fn write(&mut self, bytes: &[u8], mut out: impl FnMut(&[u8])) {
        for &byte in bytes {
            match byte {
                b'\n' => self.flush_line(&mut out),
                b'\r' => {}
                _ => {
                    if self.line.push(byte).is_err() {
                        self.flush_line(&mut out);
                        // The buffer is empty now; there is room for one byte.
                        let _ = self.line.push(byte);
                    }
                }
            }
        }
    }

    /// Passes on what has no line end yet, at a domain's end.
    pub fn finish(&mut self, mut out: impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            self.flush_line(&mut out);
        }
    }

    fn flush_line(&mut self, out: &mut impl FnMut(&[u8])) {
        out(&self.line);
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]], finish: bool) -> Vec<Vec<u8>> {
        let mut console = Console::default();
        let mut seen = Vec::new();
        for piece in pieces {
            console.write(piece, |line| seen.push(line.to_vec()));
        }
        if finish {
            console.finish(|line| seen.push(line.to_vec()));
        }
        seen
    }

    #[test]
    fn pieces_become_lines() {
        assert_eq!(lines(&[b"he", b"llo\r\nwor"], false), [b"hello".to_vec()]);
        assert_eq!(
            lines(&[b"he", b"llo\nwor"], true),
            [b"hello".to_vec(), b"wor".to_vec()]
        );
    }

    #[test]
    fn empty_lines_are_lines_but_an_empty_rest_is_none() {
        assert_eq!(lines(&[b"\n\n"], true), [b"".to_vec(), b"".to_vec()]);
    }

    #[test]
    fn a_long_line_is_cut_and_nothing_is_lost() {
        let long = vec![b'x'; LINE * 2 + 1];
        let seen = lines(&[&long], true);
        assert_eq!(
            seen.iter().map(Vec::len).collect::<Vec<_>>(),
            [LINE, LINE, 1]
        );
    }
}
