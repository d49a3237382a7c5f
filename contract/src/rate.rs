//! How tenants' rate limits are shared out over nodes: evenly, exactly, and by a rule that both
//! planes compute alike, so that one small message tells a node its part of every limit.

use crate::link;
use serde::{Deserialize, Serialize};

/// One node's part of every tenant's rate limits: that of one position among so many nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct RateShare {
    /// At least 1.
    nodes: u32,
    /// Below `nodes`.
    position: u32,
}

/// As it is kept in files.
#[derive(Serialize, Deserialize)]
struct Parts {
    nodes: u32,
    position: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("position {position} is not one of {nodes} nodes")]
pub struct NoSuchShare {
    nodes: u32,
    position: u32,
}

impl RateShare {
    /// The whole of every limit.
    pub const ALONE: Self = Self { nodes: 1, position: 0 };

    pub fn new(nodes: u32, position: u32) -> Result<Self, NoSuchShare> {
        if position < nodes {
            return Ok(Self { nodes, position });
        }
        Err(NoSuchShare { nodes, position })
    }

    pub fn nodes(self) -> u32 {
        self.nodes
    }

    /// This node's part of `limit`, in thousandths: a limit smaller than the number of nodes still
    /// leaves each of them something. The parts of all positions sum to the limit exactly.
    pub fn thousandths(self, limit: u64) -> u128 {
        let (limit, nodes) = (u128::from(limit) * 1000, u128::from(self.nodes));
        let remainder = u128::from(u128::from(self.position) < limit % nodes);
        limit / nodes + remainder
    }

    pub fn to_proto(self) -> link::RateShare {
        link::RateShare { nodes: self.nodes, position: self.position }
    }
}

impl Default for RateShare {
    fn default() -> Self {
        Self::ALONE
    }
}

impl TryFrom<&link::RateShare> for RateShare {
    type Error = NoSuchShare;
    fn try_from(share: &link::RateShare) -> Result<Self, NoSuchShare> {
        Self::new(share.nodes, share.position)
    }
}

impl TryFrom<Parts> for RateShare {
    type Error = NoSuchShare;
    fn try_from(parts: Parts) -> Result<Self, NoSuchShare> {
        Self::new(parts.nodes, parts.position)
    }
}

impl From<RateShare> for Parts {
    fn from(share: RateShare) -> Self {
        Self { nodes: share.nodes, position: share.position }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_shares_of_all_nodes_sum_to_the_limit_and_differ_by_a_thousandth_at_most(
            limit in prop_oneof![0u64..100, any::<u64>()],
            nodes in 1u32..200,
        ) {
            let shares: Vec<u128> = (0..nodes)
                .map(|position| RateShare::new(nodes, position).unwrap().thousandths(limit))
                .collect();
            prop_assert_eq!(shares.iter().sum::<u128>(), u128::from(limit) * 1000);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            prop_assert!(most - least <= 1);
        }
    }

    #[test]
    fn a_share_of_no_node_is_refused() {
        assert!(RateShare::new(0, 0).is_err());
        assert!(RateShare::new(2, 2).is_err());
        assert!(serde_json::from_str::<RateShare>(r#"{"nodes":1,"position":1}"#).is_err());
        let share = RateShare::new(3, 1).unwrap();
        assert_eq!(RateShare::try_from(&share.to_proto()), Ok(share));
    }
}
