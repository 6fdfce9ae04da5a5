package failed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/big"
	"slices"
	"strconv"
	"time"

	"github.com/itchyny/gojq"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
)

// jqTimeout bounds the run of an expression on one payload. A chunk of payloads then
// takes less than chunkTimeout.
const jqTimeout = 250 * time.Millisecond

// Transform replaces the payloads of the stopped entries selected by f by the result of a
// jq expression. It stores, skips and counts entries as Patch does, and also skips entries
// for which the expression fails or yields anything but one value. What the expression
// does not change keeps its digits, the order of its members and the spelling of its
// strings. The expression cannot read the environment, files or other inputs. Transform
// returns an Invalid error if the expression does not compile or runs for too long.
func (s *Store) Transform(ctx context.Context, f Filter, expression string, by activity.Actor, pace Pace, check Check) (Outcome, error) {
	code, err := compileJQ(expression)
	if err != nil {
		return Outcome{}, err
	}

	return s.editMany(ctx, f, by, pace, check, func(ctx context.Context, payload []byte) ([]byte, error) {
		return transform(ctx, code, payload)
	})
}

// compileJQ compiles an expression that can reach nothing but its input.
func compileJQ(expression string) (*gojq.Code, error) {
	query, err := gojq.Parse(expression)

	if wrong, ok := errors.AsType[*gojq.ParseError](err); ok {
		return nil, event.Errorf(event.Invalid, "jq: %v at character %d of %q",
			wrong, len([]rune(expression[:wrong.Offset-len(wrong.Token)]))+1, event.Shorten(expression, 200))
	}

	var code *gojq.Code
	if err == nil {
		code, err = gojq.Compile(query)
	}

	if err != nil {
		return nil, event.Errorf(event.Invalid, "jq: %v", err)
	}

	return code, nil
}

// transform returns the one value that code yields for a payload.
func transform(ctx context.Context, code *gojq.Code, payload []byte) ([]byte, error) {
	if err := event.CheckShape(payload); err != nil {
		return nil, err
	}

	before := bytes.TrimSpace(event.TrimMark(payload))

	input, err := decodeNumbers(before)
	if err != nil {
		return nil, event.Errorf(event.Rejected, "the payload: is not JSON")
	}

	bounded, cancel := context.WithTimeout(ctx, jqTimeout)
	defer cancel()

	values := code.RunWithContext(bounded, input)
	value, yielded := values.Next()

	if err := jqError(bounded, value); err != nil {
		return nil, err
	}

	if !yielded {
		return nil, event.Errorf(event.Rejected, "jq: yields no value, expected the new payload")
	}

	second, more := values.Next()
	if err := jqError(bounded, second); err != nil {
		return nil, err
	}

	if more {
		return nil, event.Errorf(event.Rejected, "jq: yields several values, expected only the new payload")
	}

	left := event.MaxPayload
	if err := bounds(value, &left, 0); err != nil {
		return nil, err
	}

	edited, err := rewrite(before, value)
	if bytes.Equal(edited, before) {
		return payload, err
	}

	return edited, err
}

// jqError returns the error that an expression yielded instead of a value.
func jqError(ctx context.Context, value any) error {
	err, failed := value.(error)

	switch {
	case !failed:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return event.Errorf(event.Invalid, "jq: runs longer than %s", jqTimeout)
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return event.Errorf(event.Rejected, "jq: %s", event.Shorten(err.Error(), 500))
	}
}

// decodeNumbers decodes JSON without loss: numbers stay text.
func decodeNumbers(text []byte) (value any, err error) {
	if !json.Valid(text) {
		return nil, errors.New("is not JSON")
	}

	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()

	return value, decoder.Decode(&value)
}

// bounds returns an error if the value of an expression cannot be a payload: it is too
// large or too deep, or has a number that JSON does not have. Values may share parts, so
// that a few steps make one that would fill the memory as text. left is the number of
// bytes that the value may have.
func bounds(value any, left *int, depth int) error {
	size := 1

	switch value := value.(type) {
	case string:
		size = len(value)
	case json.Number:
		size = len(value)
	case float64:
		if math.IsNaN(value) || math.IsInf(value, 0) {
			return event.Errorf(event.Rejected, "jq: yields %v, expected a number that JSON has", value)
		}
	}

	if *left -= size; *left < 0 {
		return event.Errorf(event.Rejected, "jq: yields more than %d bytes", event.MaxPayload)
	}

	if depth > event.MaxDepth {
		return event.Errorf(event.Rejected, "jq: yields more than %d levels", event.MaxDepth)
	}

	switch value := value.(type) {
	case []any:
		for _, element := range value {
			if err := bounds(element, left, depth+1); err != nil {
				return err
			}
		}
	case map[string]any:
		for name, v := range value {
			*left -= len(name)

			if err := bounds(v, left, depth+1); err != nil {
				return err
			}
		}
	}

	return nil
}

// rewrite returns value as JSON. Whatever equals its counterpart in before keeps the text
// that it has there; before is nil if there is none.
func rewrite(before json.RawMessage, value any) (json.RawMessage, error) {
	switch value := value.(type) {
	case map[string]any:
		return rewriteObject(before, value)
	case []any:
		return rewriteArray(before, value)
	}

	if before != nil && sameScalar(before, value) {
		return before, nil
	}

	return gojq.Marshal(value)
}

// sameScalar reports whether value is what text says, in whichever way text spells it.
func sameScalar(text json.RawMessage, value any) bool {
	if text[0] == '{' || text[0] == '[' {
		return false
	}

	old, err := decodeNumbers(text)
	if err != nil {
		return false
	}

	number, ok := old.(json.Number)
	if !ok {
		return old == value
	}

	switch value := value.(type) {
	case json.Number:
		return number == value
	case *big.Int:
		return number.String() == value.String()
	case int:
		f, err := number.Float64()

		return number.String() == strconv.Itoa(value) || err == nil && f == float64(value) && math.Abs(f) < 1<<53
	case float64:
		f, err := number.Float64()

		return err == nil && f == value
	}

	return false
}

// rewriteObject keeps the order of the members. New ones follow, sorted by name.
func rewriteObject(before json.RawMessage, value map[string]any) (json.RawMessage, error) {
	var old []member

	if isObject(before) {
		var err error
		if old, err = members(before); err != nil {
			return nil, err
		}
	}

	list := slices.DeleteFunc(slices.Clone(old), func(m member) bool {
		_, stays := value[m.name]

		return !stays
	})

	added := maps.Clone(value)
	for _, m := range old {
		delete(added, m.name)
	}

	for _, name := range slices.Sorted(maps.Keys(added)) {
		list = append(list, member{name: name})
	}

	same := isObject(before) && len(list) == len(old)

	for i, m := range list {
		text, err := rewrite(m.value, value[m.name])
		if err != nil {
			return nil, err
		}

		same = same && bytes.Equal(text, m.value)
		list[i].value = text
	}

	if same {
		return before, nil
	}

	return encodeObject(list)
}

// rewriteArray keeps the text of elements that stay, also if they move because others are
// added or removed.
func rewriteArray(before json.RawMessage, value []any) (json.RawMessage, error) {
	var old []json.RawMessage

	if bytes.HasPrefix(before, []byte("[")) {
		if err := json.Unmarshal(before, &old); err != nil {
			return nil, fmt.Errorf("reading an array of the payload: %w", err)
		}
	}

	counterparts, err := counterpartsOf(value, old)
	if err != nil {
		return nil, err
	}

	same := old != nil && len(old) == len(value)
	list := make([][]byte, len(value))

	for i, v := range value {
		if list[i], err = rewrite(counterparts[i], v); err != nil {
			return nil, err
		}

		same = same && bytes.Equal(list[i], old[i])
	}

	if same {
		return before, nil
	}

	return slices.Concat([]byte("["), bytes.Join(list, []byte(",")), []byte("]")), nil
}

// counterpartsOf returns the old element for each new one, or nil if there is none: the
// one in its place, or an equal one if the number of elements has changed.
func counterpartsOf(value []any, old []json.RawMessage) ([]json.RawMessage, error) {
	if len(value) == len(old) {
		return old, nil
	}

	equal := map[string][]json.RawMessage{}

	for _, text := range old {
		v, err := decodeNumbers(text)
		if err != nil {
			return nil, err
		}

		key, _ := gojq.Marshal(v) // never fails
		equal[string(key)] = append(equal[string(key)], text)
	}

	list := make([]json.RawMessage, len(value))

	for i, v := range value {
		marshalled, _ := gojq.Marshal(v)
		if key := string(marshalled); len(equal[key]) > 0 {
			list[i], equal[key] = equal[key][0], equal[key][1:]
		}
	}

	return list, nil
}
