package failed

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Group is a set of entries with the same cause of failure.
type Group struct {
	ID       string       `json:"id"`
	Consumer string       `json:"consumer"`
	Topic    string       `json:"topic"`
	Reason   event.Reason `json:"reason"`
	// Cause is the error without its variable values. Error is the full error of the
	// newest entry.
	Cause   string    `json:"cause"`
	Error   string    `json:"error"`
	Entries int       `json:"entries"`
	Keys    int       `json:"keys"`
	FirstAt time.Time `json:"first_at"`
	LastAt  time.Time `json:"last_at"`
	// FirstRelease and LastRelease are the program versions of the first and last
	// occurrence.
	FirstRelease string `json:"first_release"`
	LastRelease  string `json:"last_release"`
	// Note is what an operator last noted about the group, NotedBy and NotedAt who and when.
	Note    string     `json:"note,omitempty"`
	NotedBy string     `json:"noted_by,omitempty"`
	NotedAt *time.Time `json:"noted_at,omitempty"`
}

// GroupsAfter is a page cursor: the last group of the previous page.
type GroupsAfter struct {
	Entries int
	ID      string
}

// Groups returns at most limit groups of the entries selected by f, largest first,
// starting after the given group.
func (s *Store) Groups(ctx context.Context, f Filter, after GroupsAfter, limit int) ([]Group, error) {
	where, args := f.where(after.Entries, after.ID, limit)

	// Aggregate only the IDs, because errors are long.
	groups, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Group], `
		WITH groups AS (
			SELECT group_id, count(*) AS entries, count(DISTINCT key) AS keys, min(first_at) AS first_at, max(last_at) AS last_at,
			       min(id) AS first_id, (array_agg(id ORDER BY last_at DESC, id DESC))[1] AS last_id
			FROM failed_messages WHERE `+where+`
			GROUP BY group_id
			HAVING $2 = '' OR count(*) < $1 OR (count(*) = $1 AND group_id > $2)
			ORDER BY count(*) DESC, group_id LIMIT $3
		)
		SELECT g.group_id, l.consumer, l.topic, l.reason, l.cause, l.error, g.entries, g.keys, g.first_at, g.last_at,
		       f.first_release, l.last_release, coalesce(n.why, ''), coalesce(n.who, ''), n.acted_at
		FROM groups g JOIN failed_messages f ON f.id = g.first_id JOIN failed_messages l ON l.id = g.last_id
		LEFT JOIN LATERAL (
			SELECT who, why, acted_at FROM operator_actions a WHERE a.action = 'noted' AND a.subject = g.group_id ORDER BY a.id DESC LIMIT 1
		) AS n ON n.why <> ''
		ORDER BY g.entries DESC, g.group_id`, args...)
	if err != nil {
		return nil, fmt.Errorf("grouping failed messages: %w", err)
	}

	return groups, nil
}

// Note notes the reason of an action on a group; an empty one removes the note.
func (s *Store) Note(ctx context.Context, group string, by activity.Actor) error {
	return postgres.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		return activity.Record(ctx, tx, by, activity.Action{Action: activity.Noted, Subject: group})
	})
}

// Trend returns how many of the entries selected by f arrived in each of n periods before
// now, oldest first, by group.
func (s *Store) Trend(ctx context.Context, f Filter, groups []string, period time.Duration, n int) (map[string][]int, error) {
	where, args := f.where(groups, period.Seconds(), n)

	type bucket struct {
		Group      string
		Ago, Count int
	}

	list, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[bucket], `
		SELECT group_id, floor(extract(epoch FROM now() - first_at) / $2)::int AS ago, count(*)::int FROM failed_messages
		WHERE group_id = ANY($1) AND first_at > now() - $2 * $3::int * interval '1 second' AND `+where+` GROUP BY 1, 2`, args...)
	if err != nil {
		return nil, fmt.Errorf("counting failed messages by time: %w", err)
	}

	trend := map[string][]int{}

	for _, b := range list {
		if trend[b.Group] == nil {
			trend[b.Group] = make([]int, n)
		}

		trend[b.Group][max(0, n-1-max(b.Ago, 0))] += b.Count
	}

	return trend, nil
}

// Count is the number of entries that share a value.
type Count struct {
	Value   string    `json:"value"`
	Entries int       `json:"entries"`
	Keys    int       `json:"keys"`
	FirstAt time.Time `json:"first_at"`
	LastAt  time.Time `json:"last_at"`
}

// countable holds the column of each value that entries can be counted by.
var countable = map[string]string{
	"topic": "topic", "consumer": "consumer", "reason": "reason", "key": "key", "release": "last_release",
}

// Countable lists the values that entries can be counted by.
var Countable = slices.Sorted(maps.Keys(countable))

// CountBy counts the entries selected by f by topic, consumer, reason, key or
// release. It returns at most limit counts, largest first.
func (s *Store) CountBy(ctx context.Context, f Filter, by string, limit int) ([]Count, error) {
	column, ok := countable[by]
	if !ok {
		return nil, event.UnknownName("property to count by", by, Countable)
	}

	where, args := f.where(limit)

	counts, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[Count], `
		SELECT `+column+`, count(*), count(DISTINCT key), min(first_at), max(last_at)
		FROM failed_messages WHERE `+where+` GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT $1`, args...)
	if err != nil {
		return nil, fmt.Errorf("counting failed messages: %w", err)
	}

	return counts, nil
}

// CountValues counts the values that CountBy lists; see postgres.CountRows.
func (s *Store) CountValues(ctx context.Context, f Filter, by string) (int, error) {
	where, args := f.where()

	return postgres.CountRows(ctx, s.pool, `SELECT DISTINCT `+countable[by]+` FROM failed_messages WHERE `+where, args...)
}

// CountGroups counts the groups that Groups lists; see postgres.CountRows.
func (s *Store) CountGroups(ctx context.Context, f Filter) (int, error) {
	where, args := f.where()

	return postgres.CountRows(ctx, s.pool, `SELECT DISTINCT group_id FROM failed_messages WHERE `+where, args...)
}

// groupOf returns the ID of a group. Entries store it, so it must never change.
func groupOf(consumer string, reason event.Reason, cause string) string {
	sum := sha256.Sum256([]byte(consumer + "\x01" + string(reason) + "\x01" + cause))

	return hex.EncodeToString(sum[:6])
}

// maxCause is the maximum length of a cause, in bytes.
const maxCause = 300

// taken matches the values in an error. It also matches schema names and SQLSTATE
// codes, which Cause keeps.
var taken = regexp.MustCompile(`(?:relation|constraint|column|table|function|index|type|operator|schema) "[^"]*"|SQLSTATE [0-9A-Z]{5}` +
	`|"(?:[^"\\]|\\.)*"|\B'[^']*'\B` + // quoted
	`|\w+://[^\s"']+|[^\s"'<>(]+@[^\s"'<>)]+` + // addresses
	`|[\pL\pN_-]*\pN[\pL\pN_+-]*(?:[.:][\pL\pN_+-]*\pN[\pL\pN_+-]*)*`) // with a digit: ids, numbers, times

// lists matches lists of values, which Cause treats as one value.
var lists = regexp.MustCompile(`\?(?:(?:,|;| and| or)? \?)+`)

// Cause returns the first line of an entry's error without its variable values:
// quoted text, addresses, words with digits, and the message's own identifiers.
// For a panic it includes the function but not the line, so that the cause stays the
// same in the next release.
func Cause(e Entry) string {
	line, rest, _ := strings.Cut(e.Error, "\n")
	line = event.Shorten(line, maxError)
	ids := identifiers(e, line)

	line = taken.ReplaceAllStringFunc(line, func(found string) string {
		if strings.HasPrefix(found, "SQLSTATE") || (strings.HasSuffix(found, `"`) && !strings.HasPrefix(found, `"`)) {
			return found
		}

		return "?"
	})

	for _, id := range ids {
		line = takeOut(line, id)
	}

	line = lists.ReplaceAllString(strings.Join(strings.Fields(line), " "), "?")

	if e.Reason == event.ReasonPanicked {
		if function := panickedIn(rest); function != "" {
			line += " in " + function
		}
	}

	return event.Shorten(event.Text(line), maxCause)
}

// minIdentifier is the minimum length of an identifier: a shorter one could be an
// ordinary word in the error.
const minIdentifier = 3

// identifiers returns the identifiers of a message that occur in its error, longest
// first: the key, and payload values whose name is id or ends in _id.
func identifiers(e Entry, line string) []string {
	var found []string

	add := func(id string) {
		if len(id) >= minIdentifier && strings.Contains(line, id) {
			found = append(found, id)
		}
	}

	add(e.Key)

	var payload any
	if json.Unmarshal(e.Payload, &payload) == nil {
		collect(payload, false, add)
	}

	slices.SortFunc(found, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })

	return found
}

func collect(value any, named bool, add func(id string)) {
	switch value := value.(type) {
	case string:
		if named {
			add(value)
		}
	case []any:
		for _, element := range value {
			collect(element, named, add)
		}
	case map[string]any:
		for name, element := range value {
			collect(element, name == "id" || strings.HasSuffix(name, "_id"), add)
		}
	}
}

// takeOut replaces id where it occurs as a whole word.
func takeOut(text, id string) string {
	var b strings.Builder

	for {
		before, after, ok := strings.Cut(text, id)
		if !ok {
			b.WriteString(text)

			return b.String()
		}

		left, _ := utf8.DecodeLastRuneInString(before)
		right, _ := utf8.DecodeRuneInString(after)
		b.WriteString(before)

		if inWord(left) || inWord(right) {
			b.WriteString(id)
		} else {
			b.WriteString("?")
		}

		text = after
	}
}

func inWord(r rune) bool {
	return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_' || r == '-')
}

// panickedIn returns the function that panicked, given a stack printed by
// debug.Stack: the first function below the call of panic that is not in the runtime.
func panickedIn(stack string) string {
	panicking := false

	for line := range strings.Lines(stack) {
		switch {
		case strings.HasPrefix(line, "\t"): // a file
		case strings.HasPrefix(line, "panic("):
			panicking = true
		case panicking && !strings.HasPrefix(line, "runtime."):
			function := strings.TrimSpace(line)
			if i := strings.LastIndexByte(function, '('); i > 0 {
				function = function[:i]
			}

			return function[strings.LastIndexByte(function, '/')+1:]
		}
	}

	return ""
}
