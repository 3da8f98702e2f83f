//! Managed memory as slices of plain old data.
//!
//! The types are those of [`bytemuck`], because what a page holds may come from anywhere: zeros, a
//! file, a device. [`AnyBitPattern`] types can be read from any bytes; [`NoUninit`] types have no
//! padding, so that what is written can be read as bytes again; [`Pod`] types are both. That a type is
//! one of them is derived (`#[derive(bytemuck::Pod)]`), or promised with `unsafe impl`.
//!
//! A type without a size, or one that must lie at multiples of more than a page, does not compile:
//!
//! ```compile_fail,E0080
//! fn nothing(region: &uhmm::Region) {
//!     let _ = region.as_slice_of::<()>();
//! }
//! fn main() {
//!     nothing(&uhmm::Builder::new(1 << 24).build().unwrap().region(1).unwrap());
//! }
//! ```
//!
//! Nor does one that not every pattern of bits is a value of:
//!
//! ```compile_fail,E0277
//! fn truths(space: &uhmm::Space) {
//!     let _ = space.slice::<bool>(100);
//! }
//! ```

use crate::build::Space;
use crate::region::{Region, RegionError};
use crate::span::{BoundsError, Span, resolve};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, RangeBounds};
use uhmm_core::addr::PAGE_SIZE;

pub use bytemuck::{self, AnyBitPattern, NoUninit, Pod};

impl Region {
    /// All of it, as elements of a type: as many as there is room for from the first byte on.
    pub fn as_slice_of<T: AnyBitPattern>(&self) -> &[T] {
        let len = fits::<T>(self.len());
        // SAFETY: mapped, readable and ours for as long as `self` lives; missing pages come in by a
        // fault, as with any memory. Aligned to a page, and any bytes are a `T`.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), len) }
    }

    /// All of it, as elements of a type to write to.
    pub fn as_mut_slice_of<T: AnyBitPattern + NoUninit>(&mut self) -> &mut [T] {
        let len = fits::<T>(self.len());
        // SAFETY: as in `as_slice_of`, borrowed mutably; and no write leaves bytes that are not
        // initialised.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr().cast(), len) }
    }
}

/// How many elements have room in `bytes` that begin on a page.
fn fits<T>(bytes: usize) -> usize {
    const {
        assert!(size_of::<T>() > 0, "elements of a slice have a size");
        assert!(align_of::<T>() <= PAGE_SIZE, "regions begin on a page");
    }
    bytes / size_of::<T>()
}

impl Space {
    /// Maps a slice of `len` elements of plain old data, whose bytes are zero.
    ///
    /// # Errors
    /// As [`Space::region`].
    pub fn slice<T: Pod>(&self, len: usize) -> io::Result<Slice<T>> {
        let bytes = len.checked_mul(size_of::<T>());
        let region = self.region(bytes.ok_or(RegionError::TooLarge)?)?;
        debug_assert!(len <= fits::<T>(region.len()));
        Ok(Slice {
            region,
            len,
            of: PhantomData,
        })
    }
}

/// A slice of plain old data in managed memory; unmapped when dropped. In all else it is a `[T]`.
pub struct Slice<T> {
    region: Region,
    len: usize,
    of: PhantomData<[T]>,
}

impl<T: Pod> Slice<T> {
    /// The name of a part of it, in elements: for hints, migrations, pins and device views.
    ///
    /// # Errors
    /// [`BoundsError`].
    pub fn range(&self, elements: impl RangeBounds<usize>) -> Result<Span, BoundsError> {
        let (first, len) = resolve(elements, self.len)?;
        let address = self.region.span().address() + first * size_of::<T>();
        Ok(Span::new(
            self.region.space(),
            address,
            len * size_of::<T>(),
        ))
    }

    /// The region that it fills, up to less than an element and a page.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Drops the contents: all bytes of all elements are zero.
    ///
    /// # Errors
    /// As [`Region::clear`].
    pub fn clear(&mut self) -> io::Result<()> {
        self.region.clear()
    }
}

impl<T: Pod> Deref for Slice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.region.as_slice_of()[..self.len]
    }
}

impl<T: Pod> DerefMut for Slice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.region.as_mut_slice_of()[..self.len]
    }
}

impl<T> fmt::Debug for Slice<T> {
    /// Not what the elements are: that would bring all of them in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = std::any::type_name::<T>();
        write!(f, "Slice({} of {name}, {:?})", self.len, self.region.span())
    }
}
