//! Values that are sums.

/// Values to which those of a `C` can be added: a cell of the kernel side, or values of their own
/// type.
pub trait AddFrom<C: ?Sized = Self> {
    /// Adds the numbers of `other` to these.
    fn add_from(&mut self, other: &C);
}

/// A node's values, all of them sums.
pub trait Summable: AddFrom + Clone + Default + Send + Sync + 'static {}

impl<T: AddFrom + Clone + Default + Send + Sync + 'static> Summable for T {}

impl AddFrom for u64 {
    #[inline]
    fn add_from(&mut self, other: &Self) {
        *self += other;
    }
}

/// `None` means unknown. The sum is that of the known values.
impl AddFrom for Option<u64> {
    #[inline]
    fn add_from(&mut self, other: &Self) {
        *self = match (*self, *other) {
            (Some(one), Some(other)) => Some(one + other),
            (one, other) => one.or(other),
        };
    }
}

impl<T: AddFrom<C>, C, const N: usize> AddFrom<[C; N]> for [T; N] {
    #[inline]
    fn add_from(&mut self, other: &[C; N]) {
        for (sum, value) in self.iter_mut().zip(other) {
            sum.add_from(value);
        }
    }
}

/// Declares a struct of values that are sums, one line per counter.
///
/// `struct Name: NameCell { field: Type, … }` supports addition of its own type and of a `NameCell`
/// of the kernel side, whose fields have the same names. `beside { field: Type, … }` declares
/// values that the cell does not have. Without `: NameCell` there is no cell.
macro_rules! sums {
    (
        $(#[$meta:meta])*
        $visibility:vis struct $name:ident $(: $cell:ty)? {
            $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
        }
        $(beside { $($(#[$own_meta:meta])* $own:ident: $own_type:ty,)* })?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        $visibility struct $name {
            $($(#[$field_meta])* $field: $type,)*
            $($($(#[$own_meta])* $own: $own_type,)*)?
        }

        impl $crate::source::values::AddFrom for $name {
            fn add_from(&mut self, other: &Self) {
                $($crate::source::values::AddFrom::add_from(&mut self.$field, &other.$field);)*
                $($($crate::source::values::AddFrom::add_from(&mut self.$own, &other.$own);)*)?
            }
        }

        impl $crate::source::values::Words for $name {
            const SHAPE: u64 = {
                use $crate::source::values::{Words, digest, digest_of};
                let shape = digest_of("sums");
                $(let shape = digest(digest(shape, digest_of(stringify!($field))), <$type as Words>::SHAPE);)*
                $($(let shape = digest(digest(shape, digest_of(stringify!($own))), <$own_type as Words>::SHAPE);)*)?
                shape
            };

            fn put(&self, words: &mut Vec<u64>) {
                $($crate::source::values::Words::put(&self.$field, words);)*
                $($($crate::source::values::Words::put(&self.$own, words);)*)?
            }

            fn take(words: &mut &[u64]) -> Option<Self> {
                Some(Self {
                    $($field: $crate::source::values::Words::take(words)?,)*
                    $($($own: $crate::source::values::Words::take(words)?,)*)?
                })
            }
        }

        $crate::source::values::sums!(@cell $name, [$($cell)?], [$($field)*]);
    };
    (@cell $name:ident, [], [$($field:ident)*]) => {};
    (@cell $name:ident, [$cell:ty], [$($field:ident)*]) => {
        impl $crate::source::values::AddFrom<$cell> for $name {
            fn add_from(&mut self, cell: &$cell) {
                $($crate::source::values::AddFrom::add_from(&mut self.$field, &cell.$field);)*
            }
        }

        impl std::ops::AddAssign<&$cell> for $name {
            #[inline]
            fn add_assign(&mut self, cell: &$cell) {
                $crate::source::values::AddFrom::add_from(self, cell);
            }
        }
    };
}
pub(in crate::source) use sums;

#[cfg(test)]
mod tests {
    use super::*;

    struct TestCell {
        one: u64,
        many: [u64; 3],
    }

    sums! {
        struct Counted: TestCell {
            one: u64,
            many: [u64; 3],
        }
        beside {
            known: Option<u64>,
        }
    }

    #[test]
    fn each_field_is_added() {
        let cell = TestCell {
            one: 1,
            many: [2, 3, 4],
        };
        let mut sum = Counted::default();
        sum += &cell;
        let mut other = Counted {
            known: Some(5),
            ..sum
        };
        other.add_from(&sum);
        assert_eq!(
            other,
            Counted {
                one: 2,
                many: [4, 6, 8],
                known: Some(5),
            }
        );
    }

    sums! {
        struct Renamed {
            one: u64,
            others: [u64; 3],
        }
        beside {
            known: Option<u64>,
        }
    }

    #[test]
    fn names_of_counters_are_part_of_the_shape() {
        use crate::source::values::Words;
        assert_ne!(Counted::SHAPE, Renamed::SHAPE);
        let written = |value: &dyn Fn(&mut Vec<u64>)| {
            let mut words = Vec::new();
            value(&mut words);
            words
        };
        let words = written(&|words| Counted::default().put(words));
        assert_eq!(words, written(&|words| Renamed::default().put(words)));
    }

    #[test]
    fn an_unknown_value_is_not_zero() {
        let sum = |mut one: Option<u64>, other| {
            one.add_from(&other);
            one
        };
        assert_eq!(sum(None, None), None);
        assert_eq!(sum(Some(1), None), Some(1));
        assert_eq!(sum(None, Some(2)), Some(2));
        assert_eq!(sum(Some(1), Some(2)), Some(3));
    }
}
