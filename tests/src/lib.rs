//! Integration tests of cgmeter; they are in `live/`.
