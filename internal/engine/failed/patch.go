package failed

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// maxDiffs caps the diffs of an outcome.
const maxDiffs = 3

// EntryDiff shows how an action changes the payload of an entry, as a unified diff.
type EntryDiff struct {
	ID   int64  `json:"id"`
	Diff string `json:"diff"`
}

// Patch applies a JSON Merge Patch to the payloads of the stopped entries selected by f.
// The originals are kept, as with Edit. Patch skips entries whose payload is not a JSON
// object, entries whose patched payload check rejects, and entries whose key the patch
// would change. Like Requeue it works in chunks. It returns an Invalid error unless
// the patch is a JSON object.
func (s *Store) Patch(ctx context.Context, f Filter, patch []byte, by activity.Actor, pace Pace, check Check) (Outcome, error) {
	if _, err := members(patch); err != nil {
		return Outcome{}, event.Errorf(event.Invalid, "patch: %v, expected a JSON object (a merge patch, RFC 7396)", err)
	}

	return s.editMany(ctx, f, by, pace, check, func(_ context.Context, payload []byte) ([]byte, error) {
		patched, err := mergePatch(payload, patch)
		if err != nil {
			return nil, event.Errorf(event.Rejected, "the payload: %v, expected a JSON object", err)
		}

		return patched, nil
	})
}

// editMany replaces the payloads of the stopped entries selected by f by what edit makes
// of them. It skips entries for which edit, check or a new key is an error, unless the
// error is Invalid, because it would then be the same for every entry.
func (s *Store) editMany(ctx context.Context, f Filter, by activity.Actor, pace Pace, check Check,
	edit func(ctx context.Context, payload []byte) ([]byte, error),
) (Outcome, error) {
	if by.Who == "" {
		return Outcome{}, activity.ErrNoActor
	}

	return s.inChunks(ctx, f, pace, func(ctx context.Context, tx pgx.Tx, list []Entry, outcome *Outcome) error {
		var changed []Entry

		for _, e := range list {
			edited, err := edit(ctx, e.Current())
			if err == nil {
				err = keepsKey(e, edited, check)
			}

			switch {
			case event.KindOf(err) == event.Invalid, ctx.Err() != nil:
				return fmt.Errorf("editing message %d: %w", e.ID, cmp.Or(ctx.Err(), err))
			case err != nil:
				outcome.refuse(e.ID, err)
			case bytes.Equal(edited, e.Current()):
				outcome.Unchanged++
			default:
				if len(outcome.Diffs) < maxDiffs {
					outcome.Diffs = append(slices.Clone(outcome.Diffs), EntryDiff{e.ID, diff("now", e.Current(), "edited", edited)})
				}

				e.Edited = edited
				changed = append(changed, e)
			}
		}

		outcome.did(changed)

		if pace.DryRun || len(changed) == 0 {
			return nil
		}

		return storeEdits(ctx, tx, changed, by)
	})
}

// keepsKey returns an error if the consumer of e would reject its new payload, or if the
// payload has another key.
func keepsKey(e Entry, edited []byte, check Check) error {
	key, err := check(e.Consumer, edited)
	if err != nil {
		return err
	}

	if key != "" && StoredKey(key) != e.FailedKey {
		return event.Errorf(event.KeyChange, "the edit changes the key to %s: edit this message on its own", key)
	}

	return nil
}

// storeEdits stores each entry's Edited payload.
func storeEdits(ctx context.Context, tx pgx.Tx, list []Entry, by activity.Actor) error {
	_, err := tx.Exec(ctx, `
		UPDATE failed_messages m SET edited = nullif(e.edited, m.payload), revision = m.revision + 1
		FROM unnest($1::bigint[], $2::bytea[]) AS e (id, edited) WHERE m.id = e.id`,
		idsOf(list), postgres.Column(list, func(e Entry) []byte { return e.Edited }))
	if err != nil {
		return fmt.Errorf("storing edited payloads: %w", err)
	}

	return activity.Record(ctx, tx, by, postgres.Column(list, func(e Entry) activity.Action {
		return activity.Action{Action: activity.Edited, Subject: subjectOf(e), EntryID: &e.ID, Payload: e.Edited}
	})...)
}

// member is a member of a JSON object.
type member struct {
	name  string
	value json.RawMessage
}

// members returns the members of a JSON object in order. If a name is repeated, the last
// value wins, as in encoding/json.
func members(object []byte) (list []member, err error) {
	if !json.Valid(object) {
		return nil, fmt.Errorf("is not JSON")
	}

	decoder := json.NewDecoder(bytes.NewReader(object))

	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return nil, fmt.Errorf("is not a JSON object")
	}

	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil, err
		}

		m := member{name: fmt.Sprint(name)}
		if err := decoder.Decode(&m.value); err != nil {
			return nil, err
		}

		list = append(slices.DeleteFunc(list, func(earlier member) bool { return earlier.name == m.name }), m)
	}

	return list, nil
}

// mergePatch applies a JSON Merge Patch (RFC 7396) to a JSON object. Unlike existing
// libraries, it keeps the order of members and the digits of numbers.
func mergePatch(object, patch []byte) ([]byte, error) {
	target, err := members(object)
	if err != nil {
		return nil, err
	}

	changes, err := members(patch)
	if err != nil {
		return nil, err
	}

	for _, change := range changes {
		at := slices.IndexFunc(target, func(m member) bool { return m.name == change.name })

		switch {
		case string(change.value) == "null":
			target = slices.DeleteFunc(target, func(m member) bool { return m.name == change.name })

			continue
		case at < 0:
			at = len(target)
			target = append(target, member{name: change.name, value: json.RawMessage("{}")})
		}

		if target[at].value, err = mergeValue(target[at].value, change.value); err != nil {
			return nil, err
		}
	}

	return encodeObject(target)
}

// mergeValue returns the new value of a member.
func mergeValue(value, change json.RawMessage) (json.RawMessage, error) {
	if !isObject(change) {
		return change, nil
	}

	if !isObject(value) {
		value = json.RawMessage("{}")
	}

	return mergePatch(value, change)
}

func isObject(value json.RawMessage) bool { return strings.HasPrefix(string(value), "{") }

func encodeObject(list []member) ([]byte, error) {
	var b bytes.Buffer

	b.WriteByte('{')

	for i, m := range list {
		if i > 0 {
			b.WriteByte(',')
		}

		name := json.NewEncoder(&b)
		name.SetEscapeHTML(false)

		if err := name.Encode(m.name); err != nil {
			return nil, fmt.Errorf("writing the name %q: %w", m.name, err)
		}

		b.Truncate(b.Len() - 1) // Encode's newline
		b.WriteByte(':')
		b.Write(m.value)
	}

	b.WriteByte('}')

	return b.Bytes(), nil
}
