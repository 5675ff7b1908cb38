//! Where the bytes of a store are: what is asked of them (`contract`), and who keeps them (`redb`, in a `file` or on a
//! disk of another kind; `memory`).

#[cfg_attr(not(feature = "testing"), allow(unreachable_pub, reason = "`testing` shows it to the world"))]
pub(crate) mod contract;
pub(crate) mod file;
#[cfg_attr(not(feature = "testing"), allow(unreachable_pub, reason = "`testing` shows it to the world"))]
pub(crate) mod memory;
pub(crate) mod redb;
