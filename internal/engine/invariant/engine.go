package invariant

// Pending selects the keys with unfinished work: a message in the outbox, a waiting
// message or a stopped one.
const Pending = `SELECT key FROM outbox UNION SELECT key FROM failed_messages WHERE state <> 'resolved'`

// engine returns the checks of the engine's tables.
func engine() []Source {
	return []Source{
		{
			Name:  "streams",
			Count: `SELECT count(*) FROM events WHERE version = 1`,
			Rows: `
				SELECT stream AS id, count(*) AS events, min(version) AS low, max(version) AS high FROM events
				GROUP BY stream HAVING count(*) <> max(version) OR min(version) <> 1`,
			Checks: []Check{{
				Name:   "streams",
				Means:  "The versions of a stream are 1..n without gaps.",
				Advice: "Events are missing: restore them from a backup. Until then the aggregate cannot be rebuilt from its first event.",
				Fault:  `format('has %s events with versions %s to %s', events, low, high)`,
			}},
		},
		{
			Name:  "projections",
			Count: `SELECT count(*) FROM projections`,
			Rows: `
				SELECT name AS id, position, (SELECT recorded_at FROM events WHERE events.position > p.position ORDER BY events.position LIMIT 1) AS next_at
				FROM projections p`,
			Checks: []Check{{
				Name:   "projections",
				Means:  "Projections keep up with the events.",
				Advice: "`millrace status` shows projections that fail and old transactions, which block them.",
				Fault: `CASE WHEN next_at < now() - @older::interval
					THEN format('stopped at position %s; the next event is from %s', position, to_char(next_at, 'YYYY-MM-DD HH24:MI:SS')) END`,
			}},
		},
		{
			Name:  "outbox rows",
			Count: `SELECT count(*) FROM outbox`,
			Rows: `
				SELECT seq::text AS id, topic, created_at, available_at FROM outbox
				WHERE available_at IS NULL AND created_at < now() - @older::interval OR available_at < now() - @older::interval`,
			Checks: []Check{{
				Name:   "outbox",
				Means:  "Messages that are due are published.",
				Advice: "Check `/readyz` and the log (`message cannot be published`) for the reason; `millrace consumers list` shows paused consumers. Messages are published automatically once the broker accepts them.",
				Fault: `CASE
					WHEN available_at IS NULL THEN format('to %s: waiting since %s', topic, to_char(created_at, 'YYYY-MM-DD HH24:MI:SS'))
					ELSE format('to %s: was due at %s', topic, to_char(available_at, 'YYYY-MM-DD HH24:MI:SS')) END`,
				// Confirm in a second query, because a message scheduled long ago
				// already looks old when it becomes due.
				Confirm: `SELECT seq::text FROM outbox WHERE seq = ANY($1::text[]::bigint[])`,
			}},
		},
		{
			Name:  "inbox rows",
			Count: `SELECT count(*) FROM inbox`,
			Rows: `
				SELECT consumer || ' ' || message_id AS id, day, CASE WHEN get_byte(bytes, 6) >> 4 = 7
					THEN date '1970-01-01' + ((((get_byte(bytes, 0)::bigint << 40) + (get_byte(bytes, 1)::bigint << 32) + (get_byte(bytes, 2)::bigint << 24)
					     + (get_byte(bytes, 3) << 16) + (get_byte(bytes, 4) << 8) + get_byte(bytes, 5)) / 86400000)::int)
					ELSE date '1970-01-01' END AS day_of_id
				FROM (SELECT consumer, message_id, day, uuid_send(message_id) AS bytes FROM inbox OFFSET 0) AS i`,
			Checks: []Check{{
				Name:   "inbox",
				Means:  "A message has one inbox row per consumer, in the partition of its id.",
				Advice: "A row in another partition does not prevent its message from being applied again. Delete it if the correct partition also has the row; otherwise move it.",
				Fault:  `CASE WHEN day <> day_of_id THEN format('is in the partition of %s, but its id belongs to %s', day, day_of_id) END`,
			}},
		},
		{
			Name:  "failed messages",
			Count: `SELECT count(*) FROM failed_messages`,
			Rows: `
				SELECT id::text AS id, fingerprint, ('x' || encode(substr(sha256(payload), 1, 8), 'hex'))::bit(64)::bigint AS payload_fingerprint,
				       jsonb_typeof(headers) AS headers, payload = '' AS erased
				FROM failed_messages`,
			Checks: []Check{{
				Name:   "failed",
				Means:  "Failed messages have their original bytes and headers, unless they were erased.",
				Advice: "Do not requeue the message: ask the producer to resend it.",
				Fault: `CASE
					WHEN fingerprint <> payload_fingerprint AND NOT erased THEN 'its payload has changed since it arrived'
					WHEN headers <> 'object' THEN 'its headers are not an object' END`,
			}},
		},
		{
			Name:  "failed keys",
			Count: `SELECT count(*) FROM failed_keys`,
			Rows: `
				SELECT k.consumer || ' ' || k.key AS id, k.due_at, k.leased_until, coalesce(m.waiting, 0) AS waiting, coalesce(m.stopped, 0) AS stopped,
				       EXISTS (SELECT FROM paused_consumers c WHERE c.consumer = k.consumer) AS paused
				FROM failed_keys k
				LEFT JOIN (
					SELECT consumer, failed_key AS key, count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'stopped') AS stopped
					FROM failed_messages WHERE failed_key IS NOT NULL GROUP BY 1, 2) AS m ON m.consumer = k.consumer AND m.key = k.key`,
			Checks: []Check{{
				Name:   "waiting",
				Means:  "Each key has a failed message, a key is due if and only if a message is waiting, and no key is overdue.",
				Advice: "Inspect the key with `millrace failed waiting` and retry it with `millrace failed retry`. If keys stay overdue, no running service has their consumer.",
				Fault: `CASE
					WHEN waiting = 0 AND due_at IS NOT NULL THEN 'is blocked, but no message waits'
					WHEN waiting > 0 AND due_at IS NULL THEN 'has waiting messages that nothing retries'
					WHEN waiting + stopped = 0 THEN 'has no failed message'
					WHEN greatest(due_at, leased_until) < now() - @older::interval AND NOT paused THEN 'has been due since ' || to_char(due_at, 'YYYY-MM-DD HH24:MI:SS') END`,
			}},
		},
	}
}
