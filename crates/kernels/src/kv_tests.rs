use super::*;

fn fill(kv: &KvStore, slot: u32, seed: f32) {
    for layer in 0..kv.layers() {
        let n = kv.kv_heads(layer) * kv.dim();
        let row = |bias: f32| (0..n).map(|i| seed + i as f32 / 8.0 + bias + layer as f32).collect::<Vec<_>>();
        kv.write(layer, slot, &row(0.0), &row(0.5));
    }
}
fn row(kv: &mut KvStore, slot: u32) -> Vec<f64> {
    let mut out = Vec::new();
    for layer in 0..kv.layers() {
        for head in 0..kv.kv_heads(layer) {
            for value in [false, true] {
                out.extend((0..kv.dim()).map(|e| kv.element(layer, head, slot, value, e)));
            }
        }
    }
    out
}

#[test]
fn what_is_written_is_read_in_every_dtype() {
    for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
        let mut kv = KvStore::new(dtype, &[2, 1, 3], 24, 70).unwrap();
        fill(&kv, 69, 3.0);
        let got = row(&mut kv, 69);
        assert_eq!(got.len(), 6 * 48);
        assert_eq!((got[0], got[24], got[48 + 23]), (3.0, 3.5, 3.0 + 47.0 / 8.0));
        assert_eq!(got[96], 4.0);
        assert!(row(&mut kv, 68).iter().all(|&x| x == 0.0));
        assert_eq!(kv.slot_bytes(), 6 * (24 + 32) * dtype.bytes());
    }
}

#[test]
fn copying_runs_is_copying_slots_in_order() {
    let cases: [&[(u32, u32)]; 6] = [
        &[(64, 3), (65, 4), (70, 5), (71, 6)],
        &(0..32).map(|i| (i, 32 + i)).collect::<Vec<_>>(),
        &(0..40).map(|i| (i + 1, i)).collect::<Vec<_>>(),
        &(0..40).map(|i| (i, i + 1)).collect::<Vec<_>>(),
        &(0..60).map(|i| (i + 20, i + 3)).collect::<Vec<_>>(),
        &[(5, 5), (6, 5), (5, 7), (95, 0)],
    ];
    for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
        for moves in cases {
            let mut kv = KvStore::new(dtype, &[2, 1], 8, 96).unwrap();
            (0..96).for_each(|slot| fill(&kv, slot, slot as f32));
            let mut want: Vec<u32> = (0..96).collect();
            moves.iter().for_each(|&(from, to)| want[to as usize] = want[from as usize]);
            let rows: Vec<_> = (0..96).map(|slot| row(&mut kv, slot)).collect();
            kv.copy(moves);
            for slot in 0..96 {
                assert_eq!(row(&mut kv, slot), rows[want[slot as usize] as usize], "{moves:?} {slot}");
            }
        }
    }
}

#[test]
fn a_store_that_cannot_be_is_refused() {
    assert!(matches!(KvStore::new(KvDtype::F32, &[1], 12, 32), Err(KvError::Shape { dim: 12, .. })));
    assert!(matches!(KvStore::new(KvDtype::F32, &[1, 0], 16, 32), Err(KvError::Shape { .. })));
    assert!(matches!(KvStore::new(KvDtype::F32, &[8; 32], 128, usize::MAX / 64), Err(KvError::Memory { .. })));
}

#[test]
fn threads_write_their_own_slots() {
    let mut kv = KvStore::new(KvDtype::F16, &[2], 16, 64).unwrap();
    std::thread::scope(|scope| {
        for half in 0..2 {
            let kv = &kv;
            scope.spawn(move || (0..32).for_each(|i| fill(kv, 2 * i + half, (2 * i + half) as f32)));
        }
    });
    (0..64).for_each(|slot| assert_eq!(row(&mut kv, slot)[0], f64::from(slot)));
}
