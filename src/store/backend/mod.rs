//! Where the bytes of a store are: what the store requires (`contract`), and the engines (`redb`, in a file, which
//! `store_file` creates and opens, or on another kind of disk; `memory`).

#[cfg_attr(not(feature = "testing"), allow(unreachable_pub, reason = "`testing` makes it public"))]
pub(crate) mod contract;
#[cfg_attr(not(feature = "testing"), allow(unreachable_pub, reason = "`testing` makes it public"))]
pub(crate) mod memory;
pub(crate) mod redb;
pub(crate) mod store_file;
