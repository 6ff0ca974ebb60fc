//! What the kernel keeps to tell: the log, and names of functions.

use super::{check, tests};
use crate::boot::symbols::Named;
use crate::log;

tests!("records":
    the_ring_keeps_the_last_line,
    functions_have_names,
);

fn the_ring_keeps_the_last_line() -> super::Outcome {
    const TEXT: &str = "this line is looked for in the ring";
    log::plain_line(format_args!("{TEXT}"));
    let mut kept = alloc::vec![0; log::RING_BYTES];
    let (_, len) = log::read_ring(0, &mut kept);
    let kept = kept.get(..len).unwrap_or_default();
    let mut lines = kept.split(|&byte| byte == b'\n').rev();
    check!(
        lines.next() == Some(b"") && lines.next() == Some(TEXT.as_bytes()),
        "it is not the last of {len} bytes"
    );
    Ok(())
}

fn functions_have_names() -> super::Outcome {
    let name = alloc::format!("{}", Named(functions_have_names as *const () as u64));
    check!(
        name == "plinth_kernel::selftest::records::functions_have_names+0x0",
        "the name is {name}"
    );
    Ok(())
}
