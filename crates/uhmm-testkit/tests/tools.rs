//! The oracle tells what is wrong with a page; the flaky device fails as it was told.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use uhmm_core::addr::{DevicePage, PageData};
use uhmm_core::device::{CopyInError, CopyOutError, Device};
use uhmm_mirror::MirrorDevice;
use uhmm_testkit::{FlakyDevice, Oracle, PageKind, Rng, content};

const P: DevicePage = DevicePage(0);
const Q: DevicePage = DevicePage(1);

fn flaky() -> FlakyDevice<MirrorDevice> {
    FlakyDevice::new(MirrorDevice::new(1 << 20))
}

#[test]
fn the_same_seed_page_and_version_give_the_same_bytes_and_others_do_not() {
    let (mut a, mut b) = (PageData::ZERO, PageData::ZERO);
    let mut seen = HashSet::new();
    for page in 0..50 {
        for version in 1..10 {
            content(3, page, version, &mut a);
            content(3, page, version, &mut b);
            assert_eq!(a.0, b.0);
            seen.insert(a.0);
        }
    }
    // Zero pages and repeated bytes are alike; nothing else is.
    assert!(seen.len() > 250, "{} of 450 differ", seen.len());
}

#[test]
fn kinds_look_as_they_say() {
    let distinct = |kind: PageKind| {
        let mut page = PageData::ZERO;
        kind.fill(&mut Rng::new(1), &mut page);
        let words: HashSet<_> = page.0.chunks(8).collect();
        (
            words.len(),
            page.0.iter().filter(|&&byte| byte == 0).count(),
        )
    };
    assert_eq!(distinct(PageKind::Zero), (1, 4096));
    assert_eq!(distinct(PageKind::Same).0, 1);
    assert_eq!(distinct(PageKind::Random).0, 512);
    assert!((1500..2600).contains(&distinct(PageKind::Half).1));
    assert_eq!(distinct(PageKind::Text).1, 0);
}

#[test]
fn random_numbers_stay_below_their_bound() {
    let mut rng = Rng::new(0);
    let seen: HashSet<_> = (0..1000).map(|_| rng.below(7)).collect();
    assert_eq!(seen, (0..7).collect());
}

#[test]
fn the_oracle_knows_what_was_written() {
    let oracle = Oracle::new(5, 4);
    let mut page = PageData::ZERO;
    oracle.check(2, &page);
    for _ in 0..20 {
        oracle.write(2, &mut page);
        oracle.check(2, &page);
    }
    oracle.discard(2);
    oracle.check(2, &PageData::ZERO);
    oracle.expected(2, &mut page);
    assert_eq!(page.0, PageData::ZERO.0);
}

#[test]
fn the_oracle_tells_old_bytes_from_wrong_ones() {
    let oracle = Oracle::new(5, 1);
    let mut page = PageData::ZERO;
    // A seed whose first versions are no zeros.
    oracle.write(0, &mut page);
    let first = page.clone();
    oracle.write(0, &mut page);
    assert_ne!(first.0, page.0);
    assert_eq!(oracle.compare(0, &first).unwrap_err().older, Some(1));

    page.0[1234] ^= 1;
    let mismatch = oracle.compare(0, &page).unwrap_err();
    assert_eq!((mismatch.older, mismatch.offset), (None, 1234));
    assert!(
        mismatch.to_string().contains("first wrong byte is at 1234"),
        "{mismatch}"
    );
}

#[test]
fn copies_in_fail_after_as_many_as_said_until_healed() {
    let device = flaky();
    device.fail_copy_in_after(1, CopyInError::Full);
    assert_eq!(device.copy_in(P, &PageData::ZERO), Ok(()));
    assert_eq!(device.copy_in(Q, &PageData::ZERO), Err(CopyInError::Full));
    device.fail_copy_in_after(0, CopyInError::Dead);
    assert_eq!(device.copy_in(Q, &PageData::ZERO), Err(CopyInError::Dead));
    assert_eq!((device.stored(), device.stored_bytes()), (vec![P], 4096));
    device.heal();
    assert_eq!(device.copy_in(Q, &PageData::ZERO), Ok(()));
    assert_eq!((device.stored(), device.copies_in()), (vec![P, Q], 2));
}

#[test]
fn copies_out_fail_as_often_as_said_and_lost_pages_stay_lost() {
    let device = flaky();
    let mut to = PageData::ZERO;
    device.copy_in(P, &PageData::ZERO).unwrap();
    device.copy_in(Q, &PageData::ZERO).unwrap();
    device.retry_copy_out_after(1, 2);
    let answers = [(); 4].map(|()| device.copy_out(P, &mut to));
    let retry = Err(CopyOutError::Retry);
    assert_eq!(answers, [Ok(()), retry, retry, Ok(())]);
    device.lose(P);
    assert_eq!(device.copy_out(P, &mut to), Err(CopyOutError::Lost));
    assert_eq!(device.copy_out(Q, &mut to), Ok(()));
    assert_eq!(device.copies_out(), 3);
    device.free(P);
    device.free(Q);
    assert_eq!((device.frees(), device.stored()), (2, vec![]));
}

#[test]
fn broken_promises_to_a_device_are_caught() {
    let breaks = |call: &dyn Fn(&FlakyDevice<MirrorDevice>)| {
        let device = flaky();
        device.copy_in(P, &PageData::ZERO).unwrap();
        let at_once = catch_unwind(AssertUnwindSafe(|| call(&device))).is_err();
        let again = catch_unwind(AssertUnwindSafe(|| drop(device))).is_err();
        assert_eq!(
            at_once, again,
            "said twice, in case the core took it for a failure"
        );
        at_once
    };
    assert!(breaks(&|device| device
        .copy_in(P, &PageData::ZERO)
        .unwrap()));
    assert!(breaks(&|device| device
        .copy_out(Q, &mut PageData::ZERO.clone())
        .unwrap()));
    assert!(breaks(&|device| device.free(Q)));
    assert!(!breaks(&|device| device.free(P)));
}
