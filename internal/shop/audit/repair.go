package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/poison"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Repair is one violation that was mended, or would be.
type Repair struct {
	Check string `json:"check"`
	ID    string `json:"id"`
	What  string `json:"what"`
	// Refused is why it was left alone, empty if it was not.
	Refused string `json:"refused,omitempty"`
}

// refusal leaves a violation to people.
type refusal struct{ why string }

func (e *refusal) Error() string { return e.why }

// errDry rolls a repair back that is only shown.
var errDry = errors.New("only shown")

// Repair mends the violations that report lists and that have one safe answer.
// Each is looked at again under lock, mended in a transaction of its own, and
// leaves a row in the table repairs that names who and why. A dry run changes nothing
// and returns the same.
func (a *Auditor) Repair(ctx context.Context, report Report, by poison.Actor, dry bool) ([]Repair, error) {
	var done []Repair

	for _, c := range checks() {
		i := slices.IndexFunc(report.Checks, func(r Result) bool { return r.Name == c.name })
		if c.repair == nil || i < 0 {
			continue
		}

		for _, v := range report.Checks[i].First {
			repaired, err := a.repair(ctx, c, v.ID, by, dry)
			if err != nil {
				return done, fmt.Errorf("repairing %s of %s: %w", c.name, v.ID, err)
			}

			if repaired != nil {
				done = append(done, *repaired)
			}
		}
	}

	return done, nil
}

func (a *Auditor) repair(ctx context.Context, c check, id string, by poison.Actor, dry bool) (*Repair, error) {
	repaired := &Repair{Check: c.name, ID: id}

	err := postgres.InTx(ctx, a.pool, func(tx pgx.Tx) (err error) {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '60s'`); err != nil {
			return err
		}

		if repaired.What, err = c.repair(ctx, tx, id); err != nil || repaired.What == "" {
			return err
		}

		if dry {
			return errDry
		}

		_, err = tx.Exec(ctx, `INSERT INTO repairs (invariant, subject, what, who, why) VALUES ($1, $2, $3, $4, $5)`,
			c.name, id, repaired.What, by.Who, by.Why)

		return err
	})

	if refused, ok := errors.AsType[*refusal](err); ok {
		repaired.Refused = refused.why

		return repaired, nil
	}

	if err != nil && !errors.Is(err, errDry) {
		return nil, err
	}

	if repaired.What == "" {
		return nil, nil //nolint:nilnil // it has healed meanwhile
	}

	return repaired, nil
}

// repairStock counts a product's orders anew. Whoever changes what a product
// has reserved or sold changes its row in the same transaction, so while this
// one holds the row the orders that it sees and the row belong together.
func repairStock(ctx context.Context, tx pgx.Tx, id string) (string, error) {
	var supplied, available, reserved, sold, held, completed int64

	err := tx.QueryRow(ctx, `SELECT supplied, available, reserved, sold FROM stock WHERE product_id = $1 FOR NO KEY UPDATE`, id).
		Scan(&supplied, &available, &reserved, &sold)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", &refusal{why: "there is no such product: how much of it there is, nobody can tell from here"}
	}

	if err != nil {
		return "", err
	}

	// A statement of its own: its snapshot is from after the lock.
	err = tx.QueryRow(ctx, `
		SELECT coalesce(sum(l.quantity) FILTER (WHERE o.status <> 'completed'), 0)::bigint,
		       coalesce(sum(l.quantity) FILTER (WHERE o.status = 'completed'), 0)::bigint
		FROM orders o CROSS JOIN LATERAL jsonb_to_recordset(o.lines) AS l (product_id text, quantity bigint)
		WHERE o.status IN ('inventory_reserved', 'paid', 'completed') AND l.product_id = $1`, id).Scan(&held, &completed)
	if err != nil || held == reserved && completed == sold {
		return "", err
	}

	left := supplied - held - completed
	if left < 0 {
		return "", &refusal{why: fmt.Sprintf("orders hold %d and got %d, more than the %d that were supplied: count the goods", held, completed, supplied)}
	}

	_, err = tx.Exec(ctx, `UPDATE stock SET available = $2, reserved = $3, sold = $4 WHERE product_id = $1`, id, left, held, completed)

	return fmt.Sprintf("available %d -> %d, reserved %d -> %d, sold %d -> %d", available, left, reserved, held, sold, completed), err
}

// repairOrder sets the row of an order to what its stream says.
func repairOrder(ctx context.Context, tx pgx.Tx, id string) (string, error) {
	var (
		status, folded             string
		version, last, events, low int
	)

	err := tx.QueryRow(ctx, `SELECT status, version FROM orders WHERE id = $1 FOR NO KEY UPDATE`, id).Scan(&status, &version)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", &refusal{why: "it has no row: restore it"}
	}

	if err != nil {
		return "", err
	}

	err = tx.QueryRow(ctx, `
		SELECT coalesce((`+statuses()+`)[max(version * 16 + code) FILTER (WHERE code < $2) % 16 + 1], ''), coalesce(max(version), 0), count(*)::int, coalesce(min(version), 0)
		FROM (SELECT version, `+codeOf("type")+` AS code FROM events WHERE stream = $1) AS coded`, "order-"+id, changing).
		Scan(&folded, &last, &events, &low)

	switch {
	case err != nil:
		return "", err
	case folded == "" || low != 1 || events != last:
		return "", &refusal{why: "its stream is missing or has gaps: restore it"}
	case folded == status && last == version:
		return "", nil
	}

	_, err = tx.Exec(ctx, `UPDATE orders SET status = $2, version = $3, updated_at = now() WHERE id = $1`, id, folded, last)

	return fmt.Sprintf("status %s -> %s, version %d -> %d", status, folded, version, last), err
}
