//! An open file of a device: what each command does.
//!
//! A file is of the process that opened it, since its page table is over that process's memory: in the
//! child of a fork it does nothing, and the child opens its own. What the device reads goes to the program
//! by way of a buffer, once all of it has been read: a command that fails has changed nothing at `ptr`.

use crate::access::pages;
use crate::command::{self, Command, END, Op, Reply};
use crate::driver::Unit;
use crate::errno::Errno;
use crate::process::Process;
use std::ops::Range;
use std::time::Duration;
use uhmm::mirror::{Mirror, PageTable};

/// How long pages that leave the device are waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A device that a process has opened. Dropping it brings all pages of the device home.
pub struct File<'a> {
    pub(crate) process: Process<'a>,
    pub(crate) unit: Unit,
    /// The device's page table, over all of the process.
    pub(crate) mirror: Mirror<'a, PageTable>,
    opened_by: u32,
}

impl<'a> File<'a> {
    pub(crate) fn open(process: Process<'a>, unit: Unit) -> Result<Self, Errno> {
        Ok(Self {
            mirror: process.mirror(Some(unit.id), PageTable::new(0, END))?,
            process,
            unit,
            opened_by: std::process::id(),
        })
    }

    /// Does what a command says. `bytes` is the struct of [`command`], whose out fields are written when
    /// all went well, and only then.
    ///
    /// # Errors
    /// [`Errno`].
    pub fn ioctl(&self, request: u64, bytes: &mut [u8; command::LEN]) -> Result<(), Errno> {
        let reply = self.run(command::decode(request, bytes)?)?;
        reply.encode(bytes);
        Ok(())
    }

    /// Does what a command says, once it is decoded.
    ///
    /// # Errors
    /// [`Errno`].
    pub fn run(&self, command: Command) -> Result<Reply, Errno> {
        if !self.is_ours() {
            return Err(Errno::Inval);
        }
        let Command { op, range, buffer } = command;
        let all = Reply {
            pages: pages(&range).count() as u64,
            faults: 0,
        };
        match op {
            Op::Read => {
                let (bytes, faults) = self.read(range)?;
                self.process.write(buffer, &bytes)?;
                Ok(Reply { faults, ..all })
            }
            Op::Write => {
                let bytes = self.process.read(buffer, range.len())?;
                let faults = self.write(range, &bytes)?;
                Ok(Reply { faults, ..all })
            }
            Op::MigrateToDevice => {
                self.migrate_to_device(&range)?;
                self.show(range, buffer)?;
                Ok(all)
            }
            Op::MigrateToSystem => {
                let pages = self.migrate_to_system(range)? as u64;
                Ok(Reply { pages, ..all })
            }
            Op::Snapshot => {
                self.snapshot(range, buffer)?;
                Ok(all)
            }
            Op::Exclusive => {
                self.make_exclusive(&range)?;
                self.show(range, buffer)?;
                Ok(all)
            }
            Op::CheckExclusive => match pages(&range).any(|at| self.mirror.has_alone(at)) {
                true => Err(Errno::Perm),
                false => Ok(Reply::default()),
            },
            Op::Release => {
                self.release()?;
                Ok(Reply::default())
            }
        }
    }

    /// Gives the program what the device has now, by its own page table.
    fn show(&self, range: Range<usize>, buffer: usize) -> Result<(), Errno> {
        let bytes = self.read_mapped(range)?;
        self.process.write(buffer, &bytes)
    }

    /// Whether this process has opened the file.
    fn is_ours(&self) -> bool {
        self.opened_by == std::process::id()
    }
}

impl Drop for File<'_> {
    fn drop(&mut self) {
        // Pages that others hold stay: the device outlives its files.
        if self.is_ours() {
            let _ = self.process.space().evict_device(self.unit.id, PATIENCE);
        }
    }
}
