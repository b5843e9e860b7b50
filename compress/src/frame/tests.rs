//! Frames: round trips, every kind of damage refused, hostile claims cost nothing.

use proptest::prelude::*;
use rayon::ThreadPoolBuilder;

use super::*;
use crate::sample::gaussian;

const NOTHING: fn(usize, &mut [f32]) = |_, _| ();

fn frame_of(values: &[f32], kept: usize) -> Vec<u8> {
    extract(&mut values.to_vec(), TopK::new(kept).unwrap(), NOTHING)
}

/// Gives a frame that was tampered with the checksum that it would need.
fn seal(frame: &mut [u8]) {
    let crc = checksum(&frame[..CHECKSUM_AT], &frame[HEADER_BYTES..]);
    frame[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
}

fn sealed(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    seal(&mut frame);
    frame
}

#[test]
fn the_layout_is_the_documented_one() {
    // Worked by hand: two of eight values, at 1 and 4; levels 1.0 and 4.0; b = 1.
    // Gap 1: 1 1, code +low: 0 0; gap 2: 0 1 0, code -high: 1 1.
    let frame = frame_of(&[0.0, 1.0, 0.0, 0.0, -4.0, 0.0, 0.0, 0.0], 1024);
    let header = [
        b"NRWS".as_slice(),
        &[1, 1, 1, 6],
        &4096_u32.to_le_bytes(),
        &1024_u32.to_le_bytes(),
        &8_u64.to_le_bytes(),
        &10_u64.to_le_bytes(),
        &0xb7f4c88a_u32.to_le_bytes(),
    ];
    let payload = [6, 0, 0, 0, 0x80, 0x3f, 0x80, 0x40, 0b1010_0011, 0b1];
    assert_eq!(frame, [header.concat().as_slice(), &payload].concat());
}

#[test]
fn the_header_alone_tells_elements_and_length() {
    let frame = frame_of(&gaussian(1, 10_000), 64);
    let header = Header::parse(&frame[..HEADER_BYTES]).unwrap();
    assert_eq!((header.elements(), header.frame_len()), (10_000, frame.len()));
    assert_eq!((header.top_k.per_chunk(), header.quantiser), (64, Quantiser::TwoLevel));
}

#[test]
fn an_empty_tensor_is_a_bare_header() {
    let frame = frame_of(&[], 64);
    assert_eq!(frame.len(), HEADER_BYTES);
    decode_add(&frame, 1.0, &mut []).unwrap();
}

proptest! {
    #[test]
    fn what_was_taken_out_is_added_back(
        values in prop::collection::vec(-1e3_f32..1e3, 1..3 * CHUNK), kept in 1_usize..500, weight in -2.0_f32..2.0,
    ) {
        let mut rest = values.clone();
        let frame = extract(&mut rest, TopK::new(kept).unwrap(), NOTHING);
        let mut sum = vec![0.0; values.len()];
        decode_add(&frame, weight, &mut sum).unwrap();
        let mut sent = 0;
        for i in 0..values.len() {
            // `values - rest` is the level, up to the rounding of the subtraction.
            let level = values[i] - rest[i];
            prop_assert!((sum[i] - weight * level).abs() <= 1e-6 * weight.abs() * (values[i].abs() + level.abs()));
            sent += usize::from(level != 0.0);
        }
        prop_assert!(sent as u64 <= TopK::new(kept).unwrap().kept_of(values.len() as u64));
    }

    #[test]
    fn any_bytes_are_an_error_or_a_frame(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Frame::parse(&bytes);
    }

    #[test]
    fn sealed_tampering_never_panics_and_what_is_accepted_is_finite(
        seed in any::<u64>(),
        elements in 1..2 * CHUNK,
        kept in 1_usize..300,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut frame = frame_of(&gaussian(seed, elements), kept);
        for (at, byte) in edits {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        seal(&mut frame);
        let mut into = vec![0.0; elements];
        if decode_add(&frame, 1.0, &mut into).is_err() {
            prop_assert!(into.iter().all(|&x| x == 0.0));
        }
        prop_assert!(into.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let good = frame_of(&gaussian(2, 1500), 64);
    for bit in 0..good.len() * 8 {
        let mut frame = good.clone();
        frame[bit / 8] ^= 1 << (bit % 8);
        assert!(Frame::parse(&frame).is_err(), "bit {bit}");
    }
}

#[test]
fn every_truncation_and_any_trailing_byte_is_found() {
    let mut frame = frame_of(&gaussian(3, 1500), 64);
    for len in 0..frame.len() {
        assert!(Frame::parse(&frame[..len]).is_err(), "length {len}");
    }
    frame.push(0);
    assert_eq!(
        Frame::parse(&frame).unwrap_err(),
        FrameError::Length { expected: frame.len() - 1, got: frame.len() }
    );
}

#[test]
fn claims_beyond_the_bytes_are_refused_before_anything_is_allocated() {
    let good = || frame_of(&gaussian(4, 1500), 64);
    let error = |at, bytes: &[u8]| Frame::parse(&sealed(good(), at, bytes)).unwrap_err();
    assert!(matches!(error(ELEMENTS_AT, &u64::MAX.to_le_bytes()), FrameError::TooManyElements { .. }));
    assert!(matches!(error(ELEMENTS_AT, &ELEMENTS_MAX.to_le_bytes()), FrameError::PayloadLength { .. }));
    assert!(matches!(error(PAYLOAD_AT, &u64::MAX.to_le_bytes()), FrameError::PayloadLength { .. }));
    // The largest payload that such a tensor could have: possible by the header, but not there.
    let top_k = TopK::new(64).unwrap();
    let mut huge = sealed(good(), ELEMENTS_AT, &ELEMENTS_MAX.to_le_bytes());
    huge = sealed(huge, PAYLOAD_AT, &payload_bytes_max(ELEMENTS_MAX, top_k).to_le_bytes());
    assert!(matches!(Frame::parse(&huge).unwrap_err(), FrameError::Length { .. }));
    assert!(matches!(error(HEADER_BYTES, &u32::MAX.to_le_bytes()), FrameError::Table { .. }));
}

#[test]
fn unknown_versions_and_codings_are_named() {
    for (at, name) in [(VERSION_AT, "version"), (QUANTISER_AT, "quantiser"), (INDEX_AT, "index coding")] {
        match Header::parse(&sealed(frame_of(&[1.0], 64), at, &[9])) {
            Err(FrameError::Unsupported { field, got: 9, expected: 1 }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(matches!(Header::parse(b"NRWX"), Err(FrameError::HeaderLength { got: 4 })));
    assert!(matches!(Header::parse(&[0; HEADER_BYTES]), Err(FrameError::Magic { .. })));
    let kept = sealed(frame_of(&[1.0], 64), KEPT_AT, &5000_u32.to_le_bytes());
    assert_eq!(Header::parse(&kept), Err(FrameError::Kept { got: 5000 }));
}

/// A frame of one chunk, its stream written by `write`.
fn forged(write: impl Fn(&mut BitWriter)) -> Vec<u8> {
    let mut bits = BitWriter::with_room(4096);
    write(&mut bits);
    assemble(CHUNK, TopK::new(2).unwrap(), &[bits.finish()])
}

#[test]
fn streams_that_no_encoder_writes_are_refused() {
    let rice = crate::index::Rice::new(CHUNK, 2);
    let fault = |write: &dyn Fn(&mut BitWriter)| match Frame::parse(&forged(write)) {
        Err(FrameError::Block { block: 0, blocks: 1, fault }) => Some(fault),
        Ok(_) => None,
        Err(other) => panic!("{other}"),
    };
    let levels = 0x4000_3f80; // 1.0, 2.0
    let two = |bits: &mut BitWriter, levels: u64, gaps: [usize; 2]| {
        bits.put(levels, 32);
        for gap in gaps {
            rice.put(bits, gap);
            bits.put(0, 2);
        }
    };
    assert_eq!(fault(&|bits| two(bits, levels, [0, CHUNK - 2])), None);
    assert_eq!(fault(&|bits| two(bits, levels, [0, CHUNK - 1])), Some(BlockFault::Index));
    // The first leaves no room for the second.
    assert_eq!(fault(&|bits| two(bits, levels, [CHUNK - 1, 0])), Some(BlockFault::Index));
    assert_eq!(fault(&|bits| two(bits, 0x7f80_3f80, [0, 0])), Some(BlockFault::Levels));
    let trailing_one = |bits: &mut BitWriter| {
        two(bits, levels, [0, 0]);
        bits.put(1, 1);
    };
    assert_eq!(fault(&trailing_one), Some(BlockFault::End));
    assert_eq!(fault(&|bits| bits.put(levels, 48)), Some(BlockFault::Index));
}

#[test]
fn a_byte_too_many_in_a_stream_is_refused() {
    let (mut values, top_k) = (gaussian(8, CHUNK), TopK::new(64).unwrap());
    let mut stream = extract_block(&mut values, top_k, NOTHING);
    assert!(Frame::parse(&assemble(CHUNK, top_k, &[stream.clone()])).is_ok());
    stream.push(0);
    let error = Frame::parse(&assemble(CHUNK, top_k, &[stream])).unwrap_err();
    assert_eq!(error, FrameError::Block { block: 0, blocks: 1, fault: BlockFault::End });
}

#[test]
fn a_fault_in_the_last_block_leaves_the_target_as_it_was() {
    let elements = 2 * BLOCK + 100;
    let mut frame = frame_of(&gaussian(5, elements), 32);
    let end = frame.len();
    frame[end - 1] |= 0x80;
    frame[end - 2] = 0xff;
    seal(&mut frame);
    let mut into = vec![1.0; elements];
    let error = decode_add(&frame, 1.0, &mut into).unwrap_err();
    assert!(matches!(error, FrameError::Block { block: 2, blocks: 3, .. }), "{error}");
    assert!(into.iter().all(|&x| x == 1.0));
}

#[test]
fn a_target_of_another_length_is_refused() {
    let frame = frame_of(&[1.0; 10], 64);
    let error = decode_add(&frame, 1.0, &mut [0.0; 11]).unwrap_err();
    assert_eq!(error, FrameError::Elements { frame: 10, target: 11 });
}

#[test]
fn bytes_and_sums_do_not_depend_on_the_number_of_threads() {
    let values = gaussian(6, 3 * BLOCK + 5000);
    let on = |threads| {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut rest = values.clone();
            let frame = extract(&mut rest, TopK::new(64).unwrap(), NOTHING);
            let mut sum = rest.clone();
            decode_add(&frame, 0.3, &mut sum).unwrap();
            (frame, rest, sum)
        })
    };
    let one = on(1);
    assert!(on(2) == one && on(5) == one);
}

#[test]
fn for_each_hands_out_what_add_to_adds() {
    let values = gaussian(7, BLOCK + 777);
    let bytes = frame_of(&values, 64);
    let frame = Frame::parse(&bytes).unwrap();
    let (mut added, mut handed, mut count) = (vec![0.0; values.len()], vec![0.0; values.len()], 0);
    frame.add_to(1.0, &mut added).unwrap();
    frame.for_each(|index, value| {
        handed[index] += value;
        count += 1;
    });
    assert_eq!(added, handed);
    assert_eq!(count, frame.header().top_k.kept_of(values.len() as u64));
}
