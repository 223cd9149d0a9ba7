//! Figures of many: medians and what lies beyond.

/// Values in order.
pub struct Quantiles(Vec<f64>);

impl Quantiles {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub fn values(&self) -> &[f64] {
        &self.0
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The value that this share of all does not exceed; NaN of none.
    pub fn at(&self, share: f64) -> f64 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
        let place = (self.0.len() as f64 * share) as usize;
        self.0.get(place.min(self.0.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }

    /// Between the two in the middle, where their number is even.
    pub fn median(&self) -> f64 {
        let at = |place: usize| self.0.get(place).copied().unwrap_or(f64::NAN);
        f64::midpoint(at(self.0.len().saturating_sub(1) / 2), at(self.0.len() / 2))
    }

    pub fn lowest(&self) -> f64 {
        self.at(0.0)
    }

    pub fn highest(&self) -> f64 {
        self.at(1.0)
    }
}
