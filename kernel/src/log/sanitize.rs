//! Makes a guest's bytes safe to print: a terminal obeys control bytes, and a guest must not drive the operator's. Pure.

/// The character shown for `byte` of a guest's console: printable ASCII as it is, a tab as a blank, all else as a dot.
/// Bytes above 0x7e are dots too: some terminals take 0x80..0x9f for control codes.
pub const fn harmless(byte: u8) -> char {
    match byte {
        b'\t' => ' ',
        0x20..=0x7e => byte as char,
        _ => '.',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_becomes_a_control_character() {
        for byte in 0..=255 {
            let shown = harmless(byte);
            assert!(shown.is_ascii() && !shown.is_ascii_control(), "{byte:#x}");
        }
    }

    #[test]
    fn text_is_kept() {
        for byte in 0x20..0x7f {
            assert_eq!(harmless(byte), byte as char);
        }
        assert_eq!(harmless(0x1b), '.');
    }
}
