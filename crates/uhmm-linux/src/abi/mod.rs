//! The kernel's interfaces, as they are: typed results, and no policy.

pub mod futex;
pub mod pagemap;
pub mod uffd;
