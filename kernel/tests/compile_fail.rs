//! What the types of hardware fields must refuse at compile time.

#[test]
fn mixed_up_fields_do_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
