//! Reads what `cargo test` prints.
//!
//! Names of tests stand on standard output, names of test programs on standard error; both come in the same order, so
//! the n-th block of the one belongs to the n-th heading of the other.

use std::sync::LazyLock;

use regex::Regex;

use super::TestResult;

#[allow(
    clippy::expect_used,
    reason = "a constant pattern, compiled by every unit test below"
)]
static TEST: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"^test (.+?)(?: - should panic| - compile fail| - compile)? \.\.\. (ok|FAILED|ignored)",
    )
    .expect("a pattern")
});

/// The results of `cargo test` of a package. `good` is whether it exited with success.
pub fn parse(package: &str, stdout: &str, stderr: &str, good: bool) -> Vec<TestResult> {
    let groups: Vec<_> = stderr.lines().filter_map(heading).collect();
    let mut results = Vec::new();
    let mut block: Option<Block> = None;
    let mut blocks = 0;
    for line in stdout.lines() {
        if let Some(count) = announced(line) {
            results.extend(block.take().map(Block::close).unwrap_or_default());
            let group = groups.get(blocks).cloned().unwrap_or_default();
            block = Some(Block {
                prefix: format!("host/{package}/{group}"),
                expected: count,
                seen: 0,
                results: vec![],
            });
            blocks += 1;
        } else if let (Some(block), Some(found)) = (&mut block, TEST.captures(line)) {
            block.add(&found[1], &found[2]);
        } else if line.starts_with("test result: ") {
            results.extend(block.take().map(Block::close).unwrap_or_default());
        }
    }
    results.extend(block.take().map(Block::close).unwrap_or_default());
    if !good && results.iter().all(|result| result.failure.is_none()) {
        results.push(TestResult::failed(
            format!("host/{package}/cargo-test"),
            "cargo test failed",
        ));
    }
    results
}

/// The tests of one test program.
struct Block {
    prefix: String,
    expected: usize,
    seen: usize,
    results: Vec<TestResult>,
}

impl Block {
    fn add(&mut self, name: &str, outcome: &str) {
        self.seen += 1;
        let name = format!("{}{}", self.prefix, name.replace(' ', "_"));
        match outcome {
            "ok" => self.results.push(TestResult::ok(name)),
            "FAILED" => self.results.push(TestResult::failed(name, "see above")),
            // An ignored test neither passed nor failed.
            _ => {}
        }
    }

    /// The results, with a failure for every one that did not come.
    fn close(mut self) -> Vec<TestResult> {
        for missing in self.seen..self.expected {
            self.results.push(TestResult::failed(
                format!("{}missing-{missing}", self.prefix),
                "its result never came",
            ));
        }
        self.results
    }
}

/// N of `running N tests`.
fn announced(line: &str) -> Option<usize> {
    let rest = line.strip_prefix("running ")?;
    rest.strip_suffix(" tests")
        .or_else(|| rest.strip_suffix(" test"))?
        .parse()
        .ok()
}

/// What a test program's tests are grouped under: nothing for a package's own unit tests.
fn heading(line: &str) -> Option<String> {
    let line = line.trim_start();
    if line.starts_with("Doc-tests ") {
        return Some("doc::".to_owned());
    }
    let rest = line.strip_prefix("Running ")?;
    if rest.starts_with("unittests ") {
        return Some(String::new());
    }
    let file = rest.split(" (").next()?.strip_suffix(".rs")?;
    Some(format!("{}::", file.rsplit('/').next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STDERR: &str = "   Compiling x v0.1.0\n    Finished `test` profile\n     Running unittests src/lib.rs (target/x)\n     \
                          Running tests/layout.rs (target/y)\n   Doc-tests x\n";
    const STDOUT: &str = "\nrunning 3 tests\ntest a::one ... ok\ntest a::two - should panic ... ok\ntest slow ... ignored, why\n\
                          \ntest result: ok. 2 passed; 0 failed; 1 ignored\n\nrunning 1 test\ntest one ... FAILED\n\nfailures:\n\
                          \ntest result: FAILED. 0 passed; 1 failed\n\nrunning 1 test\ntest src/lib.rs - f (line 3) ... ok\n\
                          \ntest result: ok. 1 passed\n";

    #[test]
    fn each_test_has_its_group() {
        assert_eq!(
            parse("x", STDOUT, STDERR, false),
            [
                TestResult::ok("host/x/a::one"),
                TestResult::ok("host/x/a::two"),
                TestResult::failed("host/x/layout::one", "see above"),
                TestResult::ok("host/x/doc::src/lib.rs_-_f_(line_3)"),
            ]
        );
    }

    #[test]
    fn a_crash_fails_what_had_not_ended() {
        let stdout = "running 3 tests\ntest a ... ok\n";
        let results = parse("x", stdout, "Running unittests src/lib.rs (t)\n", false);
        assert_eq!(
            results
                .iter()
                .filter(|result| result.failure.is_some())
                .count(),
            2
        );
        assert_eq!(results.len(), 3);
    }

    #[test]
    fn a_build_that_fails_is_a_failure() {
        let results = parse("x", "", "error: could not compile\n", false);
        assert_eq!(
            results,
            [TestResult::failed("host/x/cargo-test", "cargo test failed")]
        );
        assert_eq!(parse("x", "", "", true), []);
    }
}
