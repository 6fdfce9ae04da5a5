// Package audit defines the invariants of the shop: what orders, stock, payments,
// users and notifications must agree on. Package invariant runs them, together
// with the engine's own.
package audit

import (
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// New returns an auditor of the shop's database and of the gateway's record.
func New(pool *pgxpool.Pool, gateway payment.Gateway) *invariant.Auditor {
	return invariant.New(pool, orders(), contents(), products(), transactions(), captures(gateway), users(), effects())
}

// Names returns the names of all checks.
func Names() []string { return New(nil, nil).Names() }

// users checks the projection of users.
func users() invariant.Source {
	return invariant.Source{
		Name:  "users",
		Count: `SELECT count(*) FROM users`,
		Rows: `
			SELECT coalesce(u.id, e.id) AS id, u.version, e.version AS stream_version
			FROM users u
			FULL JOIN (
				SELECT substr(stream, 6) AS id, max(version) AS version FROM events
				WHERE stream LIKE 'user-%' AND position <= coalesce((SELECT position FROM projections WHERE name = 'users'), 0)
				GROUP BY stream
			) AS e ON e.id = u.id`,
		Checks: []invariant.Check{{
			Name:   "users",
			Means:  "Each user's row has the version of their stream, up to the projection's position.",
			Advice: "Rebuild the projection with `millrace projections rebuild users`; the service keeps running during the rebuild.",
			Fault: `CASE
				WHEN version IS NULL THEN 'has a stream but no row'
				WHEN stream_version IS NULL THEN 'has a row but no stream'
				WHEN version <> stream_version THEN format('is at version %s, but its stream at %s', version, stream_version) END`,
		}},
	}
}

// effects checks that effects and inbox rows are committed together.
func effects() invariant.Source {
	return invariant.Source{
		Name:  "effects",
		Count: `SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM notifications)`,
		Rows: `
			SELECT e.message_id || ' ' || e.stream AS id, 'event' AS effect
			FROM events e
			WHERE e.recorded_at > now() - @retention::interval AND e.type <> 'UserErased'
			  AND NOT EXISTS (SELECT FROM inbox i WHERE i.message_id = e.message_id)
			UNION ALL
			SELECT n.message_id::text, 'notification' FROM notifications n
			WHERE n.sent_at > now() - @retention::interval
			  AND NOT EXISTS (SELECT FROM inbox i WHERE i.message_id = n.message_id AND i.consumer = 'notification.' || n.channel)`,
		Checks: []invariant.Check{{
			Name:  "effects",
			Means: "Every effect of a message has its inbox row, within the retention of the inbox.",
			Advice: "If the inbox was emptied or restored, redelivered messages are applied again: stop consumption until the topics are past them. " +
				"Otherwise report a bug.",
			Fault: `format('an %s of a message that no consumer has applied', effect)`,
		}},
	}
}
