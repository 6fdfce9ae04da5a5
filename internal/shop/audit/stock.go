package audit

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/invariant"
)

// ordered selects the quantities of products in open and in completed orders.
const ordered = `sum(l.quantity) FILTER (WHERE o.status <> 'completed') AS open,
	       sum(l.quantity) FILTER (WHERE o.status = 'completed') AS completed
	FROM orders o CROSS JOIN LATERAL jsonb_to_recordset(o.lines) AS l (product_id text, quantity bigint)
	WHERE o.status IN ('inventory_reserved', 'paid', 'completed')`

// products checks the stock of each product against the orders.
func products() invariant.Source {
	return invariant.Source{
		Name:  "products",
		Count: `SELECT count(*) FROM stock`,
		Rows: `
			SELECT coalesce(s.product_id, o.product_id) AS id, s.supplied, s.available, s.reserved, s.sold,
			       coalesce(o.open, 0) AS open, coalesce(o.completed, 0) AS completed
			FROM stock s
			FULL JOIN (
				SELECT l.product_id, ` + ordered + ` GROUP BY l.product_id
			) AS o ON o.product_id = s.product_id`,
		Checks: []invariant.Check{
			{
				Name:   "stock",
				Means:  "For each product supplied = available + reserved + sold, and none is below zero.",
				Advice: "Count the goods, then set the figures by hand. A restock cannot correct them.",
				Fault: `CASE
					WHEN supplied <> available + reserved + sold THEN format('%s supplied, but %s available + %s reserved + %s sold', supplied, available, reserved, sold)
					WHEN least(available, reserved, sold) < 0 THEN 'is below zero' END`,
			},
			{
				Name:   "reservations",
				Means:  "Reserved stock matches the orders in state inventory_reserved or paid; sold stock matches the completed orders.",
				Advice: "`--repair` locks the product's row, adds up its orders, and sets reserved, sold and available.",
				Fault: `CASE
					WHEN supplied IS NULL THEN format('is in orders (%s reserved, %s sold), but not in stock', open, completed)
					WHEN reserved <> open THEN format('%s reserved, but orders hold %s', reserved, open)
					WHEN sold <> completed THEN format('%s sold, but completed orders received %s', sold, completed) END`,
				Repair: repairStock,
			},
		},
	}
}

// repairStock adds up the orders of a product. Each change to reserved or sold stock
// updates the product's row in the same transaction, so the orders that are visible while
// this transaction holds the row match it.
func repairStock(ctx context.Context, tx pgx.Tx, id string) (string, error) {
	var supplied, available, reserved, sold, open, completed int64

	err := tx.QueryRow(ctx, `SELECT supplied, available, reserved, sold FROM stock WHERE product_id = $1 FOR NO KEY UPDATE`, id).
		Scan(&supplied, &available, &reserved, &sold)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", invariant.Refuse("there is no such product: its stock is unknown")
	}

	if err != nil {
		return "", err
	}

	// A separate statement, so that its snapshot is taken after the lock.
	err = tx.QueryRow(ctx, `
		SELECT coalesce(open, 0)::bigint, coalesce(completed, 0)::bigint
		FROM (SELECT `+ordered+` AND l.product_id = $1) AS o`, id).Scan(&open, &completed)
	if err != nil || open == reserved && completed == sold {
		return "", err
	}

	left := supplied - open - completed
	if left < 0 {
		return "", invariant.Refuse(fmt.Sprintf("orders hold %d and received %d, more than the %d supplied: count the goods", open, completed, supplied))
	}

	_, err = tx.Exec(ctx, `UPDATE stock SET available = $2, reserved = $3, sold = $4 WHERE product_id = $1`, id, left, open, completed)

	return fmt.Sprintf("available %d -> %d, reserved %d -> %d, sold %d -> %d", available, left, reserved, open, sold, completed), err
}
