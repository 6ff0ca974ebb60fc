//! What a guest's machine file says of it: the expectations have one source.

/// The text of the line `KEY = TEXT`.
fn line<'a>(file: &'a str, key: &str) -> Option<&'a str> {
    file.lines().find_map(|line| {
        let (found, value) = line.split_once('=')?;
        (found.trim() == key).then(|| value.trim())
    })
}

/// The value of a key that is a string without escapes.
pub fn string<'a>(file: &'a str, key: &str) -> Option<&'a str> {
    line(file, key)?.strip_prefix('"')?.strip_suffix('"')
}

/// The bytes of RAM.
pub fn memory(file: &str) -> Option<u64> {
    let mib: u64 = string(file, "memory")?.strip_suffix(" MiB")?.parse().ok()?;
    Some(mib << 20)
}
