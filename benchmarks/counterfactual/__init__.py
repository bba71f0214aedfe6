# SPDX-License-Identifier: Apache-2.0
"""Every counterfactual method in one table: same networks, same cases, same machine, with ground truth."""
