//! The tests inside of the examples' modules. (Were an example a test target itself, `cargo test` would not build the
//! program, which other tests run.)

#[allow(dead_code, reason = "the example uses the rest")]
#[path = "../../examples/airdrop/fault.rs"]
mod fault;
#[path = "../../examples/airdrop/form.rs"]
mod form;
#[allow(dead_code, reason = "the example uses the rest")]
#[path = "../../examples/synthetic/issue.rs"]
mod issue;
