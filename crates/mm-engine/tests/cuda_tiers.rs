//! Host tiers on CUDA, over a fake driver that aborts on misuse: page-locked copies are booked to the byte, copied from at once and
//! freed when the driver has read them; what there is no room for is said.
#![cfg(target_os = "linux")] // The fake driver is found by its name inside, as glibc's loader does it.

mod common;

use common::{
    Rig, Shape, TestDevice, even,
    fake_cuda::{FakeCuda, ILLEGAL_ADDRESS, NEVER, driver},
    host::slab,
    on_tiers, placement, plan_of,
};
use mm_engine::{Device, EngineError, Staging, timeline::Label};
use mm_plan::{DType, HostTier, Machine, Strategy};
use parking_lot::{Mutex, MutexGuard};
use safetensors::Dtype;
use std::sync::Arc;

const ROOMY: u64 = 1 << 24;
/// What two staging buffers lock: a page each, however small they are.
const RING: u64 = 8192;
const SMALL: Staging = Staging { buffers: 2, bytes: 256, limit: u64::MAX };

/// The driver's counters count what all do: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

/// Everything streams through two slots, from these tiers in turn.
fn streamed(staging: Staging, shape: &Shape, tiers: &[HostTier]) -> Rig<FakeCuda> {
    let device = FakeCuda::open(0, ROOMY, staging).unwrap();
    let rig = Rig::on(device, ROOMY, Strategy::Auto, std::slice::from_ref(shape));
    let component = rig.modules[0].description();
    let groups = component.groups().count();
    let plan = on_tiers(placement(component, &vec![false; groups], 2), tiers);
    rig.manager.apply_plan(plan_of(vec![plan])).unwrap();
    rig
}

fn streamed_bytes(rig: &Rig<FakeCuda>) -> u64 {
    rig.modules[0].description().groups().map(|group| group.bytes()).sum()
}

fn notes(rig: &Rig<FakeCuda>) -> Vec<String> {
    rig.modules[0].stats().notes
}

fn label() -> Label {
    Label { component: "transformer".into(), group: "layers.0".into() }
}

#[test]
fn a_page_locked_slab_is_one_copy_however_small_the_ring_is() {
    let _alone = alone();
    let copies = |tier| {
        let rig = streamed(SMALL, &even("transformer", 5), &[tier]);
        rig.pass(0, 0..5).unwrap();
        rig.pass(0, 0..5).unwrap();
        rig.manager.unload("transformer").unwrap();
        let before = driver().copies();
        rig.pass(0, 0..5).unwrap();
        rig.manager.unload("transformer").unwrap();
        let copies = driver().copies() - before;
        assert!(notes(&rig).is_empty());
        rig.finish();
        copies
    };
    // The rest's slab in two pieces; two slabs of each group; none for a pass that never comes.
    assert_eq!(copies(HostTier::PageLocked), 2 + 2 * 5);
    // A group's slabs are three pieces and two.
    assert_eq!(copies(HostTier::Staged), 2 + (3 + 2) * 5);
    assert_eq!(copies(HostTier::Pageable), copies(HostTier::Mapped));
}

#[test]
fn page_locked_copies_are_booked_to_the_byte_and_no_more_is_locked() {
    let _alone = alone();
    assert_eq!(driver().page_locked(), 0);
    // Each group alone would take a page more.
    let shape = Shape { stacks: vec![vec![(1000, 700); 150], vec![(10, 1900); 150]], ..even("transformer", 0) };
    let rig = streamed(SMALL, &shape, &[HostTier::PageLocked]);
    assert_eq!((rig.device.cuda.page_locked(), driver().page_locked()), (RING, RING));
    rig.pass(0, 0..300).unwrap();
    let (booked, locked) = (rig.device.cuda.page_locked(), driver().page_locked());
    assert_eq!(booked, locked);
    let copies = streamed_bytes(&rig);
    assert!(locked - RING >= copies && (locked - RING) * 100 <= copies * 102, "{locked} locked for {copies}");
    let allocations = driver().allocations();
    rig.pass(0, 0..300).unwrap();
    assert_eq!((driver().allocations(), driver().page_locked()), (allocations, locked), "kept across passes");
    rig.manager.unload("transformer").unwrap();
    assert_eq!((rig.device.cuda.page_locked(), driver().page_locked()), (RING, RING));
    rig.finish();
    assert_eq!(driver().page_locked(), 0);
}

#[test]
fn what_is_over_the_limit_is_read_from_files_and_said() {
    let _alone = alone();
    let shape = even("transformer", 8);
    let need = {
        let rig = streamed(SMALL, &shape, &[HostTier::PageLocked]);
        rig.pass(0, 0..8).unwrap();
        let need = rig.device.cuda.page_locked();
        rig.finish();
        need
    };
    for (limit, fits) in [(need, true), (need - 1, false), (RING, false)] {
        let rig = streamed(Staging { limit, ..SMALL }, &shape, &[HostTier::PageLocked]);
        for _ in 0..3 {
            rig.pass(0, 0..8).unwrap();
        }
        assert_eq!(rig.device.cuda.page_locked(), if fits { need } else { RING });
        if fits {
            assert_eq!(notes(&rig), [""; 0]);
        } else {
            let (bytes, notes) = (streamed_bytes(&rig), notes(&rig));
            let says = [
                format!(
                    "transformer: 8 of 8 streamed groups ({bytes} bytes) are read from their files in each pass, not from"
                ),
                format!(
                    "page-locked copies: {bytes} more bytes of host memory can't be page-locked, {limit} may be in all"
                ),
            ];
            assert!(notes.len() == 1 && says.iter().all(|text| notes[0].contains(text)), "{notes:?}");
        }
        rig.finish();
    }
}

#[test]
fn what_the_system_refuses_to_lock_is_read_from_files_and_said_until_it_can_be() {
    let _alone = alone();
    // Two runs of groups of this tier, so that there are two allocations; the second is not tried.
    let tiers = [HostTier::PageLocked, HostTier::PageLocked, HostTier::Pageable];
    let rig = streamed(SMALL, &even("transformer", 6), &tiers);
    driver().page_lock_limit(RING);
    let allocations = driver().allocations();
    rig.pass(0, 0..6).unwrap();
    rig.pass(0, 0..6).unwrap();
    let loaded = driver().allocations() - allocations;
    driver().page_lock_limit(1 << 30);
    let notes = self::notes(&rig);
    assert!(notes.len() == 1 && notes[0].contains("4 of 6") && notes[0].contains("the system refuses"), "{notes:?}");
    rig.manager.unload("transformer").unwrap();
    let allocations = driver().allocations();
    rig.pass(0, 0..6).unwrap();
    assert_eq!(driver().allocations() - allocations, loaded + 2);
    assert_eq!(self::notes(&rig), [""; 0]);
    rig.finish();
}

#[test]
fn a_ring_that_may_not_be_page_locked_is_ordinary_memory_and_says_so() {
    let _alone = alone();
    driver().pageable(1);
    for (limit, system, says) in [(4095, 1 << 30, "4095 may be in all"), (u64::MAX, 4095, "the system refuses")] {
        for seed in 0..10 {
            driver().seed(seed);
            driver().page_lock_limit(system);
            let before = driver().page_locked();
            let tiers = [HostTier::Staged, HostTier::Pageable, HostTier::PageLocked];
            let rig = streamed(Staging { limit, ..SMALL }, &even("transformer", 7), &tiers);
            for _ in 0..4 {
                rig.pass(0, 0..7).unwrap();
            }
            let told = rig.device.cuda.notes();
            assert!(told.len() == 1 && told[0].contains("8192 more bytes") && told[0].contains(says), "{told:?}");
            assert_eq!((rig.device.cuda.page_locked(), driver().page_locked()), (0, before));
            assert!(notes(&rig)[0].contains("2 of 7"), "{:?}", notes(&rig));
            rig.finish();
            driver().page_lock_limit(1 << 30);
        }
    }
    driver().pageable(0);
    assert_eq!(streamed(SMALL, &even("transformer", 1), &[HostTier::Staged]).device.cuda.notes(), [""; 0]);
}

#[test]
fn a_plan_without_a_tier_for_each_group_is_refused_and_nothing_is_held() {
    let _alone = alone();
    let device = FakeCuda::open(0, ROOMY, SMALL).unwrap();
    let rig = Rig::on(device, ROOMY, Strategy::Auto, &[even("transformer", 3)]);
    let mut plan = placement(rig.modules[0].description(), &[false; 3], 2);
    plan.stacks[0].host.pop();
    let outcome = rig.manager.apply_plan(plan_of(vec![plan])).and_then(|_| rig.begin(0).map(drop));
    assert!(matches!(outcome, Err(EngineError::PlanMismatch { .. })));
    rig.finish();
}

#[test]
fn page_locked_memory_outlives_its_sources_until_the_driver_has_read_it() {
    let _alone = alone();
    let live = driver().live();
    for seed in 0..30 {
        driver().seed(seed);
        let cuda = FakeCuda::open(0, ROOMY, SMALL).unwrap().cuda;
        let slabs: Vec<_> = (1..5u8).map(|i| Arc::new(slab(DType::F32, Dtype::F32, vec![i; 1000]))).collect();
        let sources = cuda.in_memory(&slabs, HostTier::PageLocked).unwrap();
        assert_eq!(cuda.page_locked(), RING + 4096);
        let start = |source| cuda.copy(label(), source, cuda.allocate(DType::F32, 1024).unwrap(), None);
        let mut copies: Vec<_> = sources.into_iter().map(start).collect();
        let first = cuda.finish(copies.remove(0)).ok().unwrap();
        driver().kernel(cuda.compute_stream().cu_stream() as u64, first.address(), &[1; 1000]);
        drop(copies.pop());
        let last = cuda.finish(copies.pop().unwrap()).ok().unwrap();
        if seed % 2 == 0 {
            drop((first, last));
            drop(copies);
            // The last to go had the memory; nothing that still runs reads it.
            assert_eq!(cuda.page_locked(), RING);
        } else {
            drop(cuda);
            drop(copies);
            drop((first, last));
        }
    }
    assert_eq!(driver().live(), live);
}

#[test]
fn a_wait_that_fails_leaves_page_locked_memory_alone_until_one_succeeds() {
    let _alone = alone();
    let mut kept = 0;
    for at in 0..6 {
        // Nothing runs before it is waited for.
        driver().seed(0);
        let cuda = FakeCuda::open(0, ROOMY, Staging { buffers: 1, ..SMALL }).unwrap().cuda;
        let slabs = [Arc::new(slab(DType::F32, Dtype::F32, vec![5; 1024]))];
        let source = cuda.in_memory(&slabs, HostTier::PageLocked).unwrap().remove(0);
        let start = |source| cuda.copy(label(), source, cuda.allocate(DType::F32, 1024).unwrap(), None);
        let copied = cuda.finish(start(source.clone())).ok().unwrap();
        // The only reader has let go of the first when it has ended another.
        let other = cuda.finish(start(cuda.in_files(slabs[0].clone()))).ok().unwrap();
        driver().fail(at, ILLEGAL_ADDRESS, 0);
        drop(source);
        driver().fail(NEVER, 0, 0);
        assert_eq!(cuda.page_locked(), driver().page_locked());
        kept += u32::from(cuda.page_locked() == 2 * 4096);
        drop(cuda.in_memory(&slabs, HostTier::PageLocked).unwrap());
        assert_eq!((cuda.page_locked(), driver().page_locked()), (4096, 4096), "after a fault at call {at}");
        drop((copied, other));
    }
    assert!(kept >= 3, "{kept}");
}

#[test]
fn what_could_not_be_freed_goes_with_the_last_that_knows_its_device() {
    let _alone = alone();
    let live = driver().live();
    let cuda = FakeCuda::open(0, ROOMY, SMALL).unwrap().cuda;
    let slabs = [Arc::new(slab(DType::F32, Dtype::F32, vec![5; 1024]))];
    let source = cuda.in_memory(&slabs, HostTier::PageLocked).unwrap().remove(0);
    let copy = cuda.copy(label(), source, cuda.allocate(DType::F32, 1024).unwrap(), None);
    let buffer = cuda.finish(copy).ok().unwrap();
    let locked = driver().page_locked();
    driver().fail(0, ILLEGAL_ADDRESS, 1);
    drop(cuda);
    driver().fail(NEVER, 0, 0);
    assert_eq!(driver().page_locked(), locked, "the driver may still read it");
    drop(buffer);
    assert_eq!(driver().live(), live);
}

#[test]
fn a_source_that_cannot_be_read_is_named_and_nothing_is_locked() {
    let _alone = alone();
    let device = FakeCuda::open(0, ROOMY, SMALL).unwrap();
    let mut slabs: Vec<_> = (0..9u8).map(|i| Arc::new(slab(DType::F32, Dtype::F32, vec![i; 400]))).collect();
    slabs.push(Arc::new(slab(DType::F32, Dtype::I64, vec![0; 64])));
    for tier in [HostTier::PageLocked, HostTier::Pageable] {
        let error = device.in_memory(&slabs, tier).err().unwrap();
        assert!(matches!(&error, EngineError::Source { tensor, .. } if tensor == "weight"), "{error}");
        assert_eq!((device.cuda.page_locked(), driver().page_locked()), (RING, RING));
    }
    device.check_empty();
}

#[test]
fn two_devices_each_have_their_own_account_and_order() {
    let _alone = alone();
    let need = |rig: &Rig<FakeCuda>| streamed_bytes(rig).next_multiple_of(4096);
    for seed in 0..20 {
        driver().seed(seed);
        let rigs = [0, 1].map(|ordinal| {
            let device = FakeCuda::open(ordinal, ROOMY, Staging { buffers: 1 + ordinal, ..SMALL }).unwrap();
            let rig = Rig::on(device, ROOMY, Strategy::Auto, &[even("transformer", 4 + ordinal)]);
            let plan = placement(rig.modules[0].description(), &vec![false; 4 + ordinal], 2);
            rig.manager.apply_plan(plan_of(vec![on_tiers(plan, &[HostTier::PageLocked])])).unwrap();
            rig
        });
        std::thread::scope(|scope| {
            for rig in &rigs {
                scope.spawn(|| {
                    (0..5).for_each(|_| rig.pass(0, 0..rig.modules[0].description().groups().count()).unwrap())
                });
            }
        });
        let locked = [0, 1].map(|i| rigs[i].device.cuda.page_locked());
        assert_eq!(locked, [4096 + need(&rigs[0]), 8192 + need(&rigs[1])]);
        assert_eq!(driver().page_locked(), locked.iter().sum::<u64>());
        rigs[0].manager.unload("transformer").unwrap();
        assert_eq!([0, 1].map(|i| rigs[i].device.cuda.page_locked()), [4096, locked[1]]);
        assert!(rigs[0].device.memory().in_use == 0 && rigs[1].device.memory().in_use > 0);
        rigs.into_iter().for_each(Rig::finish);
    }
}

#[test]
fn memory_of_another_device_is_misuse_and_comes_back() {
    let _alone = alone();
    let [one, other] = [0, 1].map(|ordinal| FakeCuda::open(ordinal, ROOMY, SMALL).unwrap());
    let slabs = [Arc::new(slab(DType::F32, Dtype::F32, vec![3; 1024]))];
    let source = |device: &FakeCuda| device.in_memory(&slabs, HostTier::PageLocked).unwrap().remove(0);
    let buffer = |device: &FakeCuda| device.allocate(DType::F32, 1024).unwrap();
    for (source, buffer) in [(source(&one), buffer(&other)), (source(&other), buffer(&one))] {
        let failed = one.finish(one.copy(label(), source, buffer, None)).err().unwrap();
        assert!(matches!(failed.error, EngineError::Misuse(_)), "{}", failed.error);
        one.free(failed.buffer.unwrap());
    }
    // What lies in ordinary memory is no device's.
    let source = other.in_memory(&slabs, HostTier::Pageable).unwrap().remove(0);
    let copied = one.finish(one.copy(label(), source, buffer(&one), None)).ok().unwrap();
    assert!(one.sees(&copied, 0, &[3; 1024]));
    one.free(copied);
    [one, other].iter().for_each(TestDevice::check_empty);
}

#[test]
fn casts_are_made_once_while_memory_is_filled() {
    let _alone = alone();
    let device = FakeCuda::open(0, ROOMY, SMALL).unwrap();
    let values: Vec<u16> = (0..3001u16).map(|i| half::bf16::from_f32(f32::from(i)).to_bits()).collect();
    let stored: Vec<u8> = values.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let wide: Vec<u8> = values.iter().flat_map(|bits| half::bf16::from_bits(*bits).to_f32().to_le_bytes()).collect();
    let slabs = [DType::F32, DType::Bf16, DType::F32].map(|dtype| Arc::new(slab(dtype, Dtype::BF16, stored.clone())));
    for tier in [HostTier::PageLocked, HostTier::Pageable] {
        for (slab, source) in slabs.iter().zip(device.in_memory(&slabs, tier).unwrap()) {
            let buffer = device.allocate(slab.dtype(), slab.bytes()).unwrap();
            let buffer = device.finish(device.copy(label(), source, buffer, None)).ok().unwrap();
            assert!(device.sees(&buffer, 0, if slab.dtype() == DType::F32 { &wide } else { &stored }));
            device.free(buffer);
        }
        assert!(device.in_memory(&[], tier).unwrap().is_empty());
    }
    device.check_empty();
}

#[test]
fn what_may_be_page_locked_is_the_least_that_the_host_says() {
    let limit = |ram_available, page_lock_limit| {
        Staging::within(&Machine { ram_available, page_lock_limit, ..Machine::default() }).limit
    };
    assert_eq!(limit(0, None), u64::MAX, "nothing is known");
    assert_eq!((limit(5, None), limit(5, Some(3)), limit(3, Some(5)), limit(0, Some(0))), (5, 3, 3, 0));
}
