//! SIGBUS in a program that has a space with [`Engine::Signal`](crate::Engine::Signal).
//!
//! Faults on managed memory arrive as SIGBUS then, and uhmm has the process's handler. Whatever is not a
//! fault of its own goes to the handler that the program had installed before the first such space was
//! built, with the meaning that it would have had. A program that wants to install one later, or another
//! one, calls [`set_handler`] instead of `sigaction`.

pub use uhmm_linux::sigbus::{Replaced, check, set_handler};
