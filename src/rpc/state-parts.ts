/** What goes on from a step needs of each trained matrix: its values and AdamW's two moments. Ranks tell these, the coordinator counts on them. */
export const STATE_PARTS = ["weight", "exp_avg", "exp_avg_sq"] as const;
