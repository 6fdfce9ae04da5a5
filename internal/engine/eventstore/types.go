package eventstore

import (
	"encoding/json"
	"fmt"
)

// Upcaster converts the body of an event from one schema version to the next.
type Upcaster func(old json.RawMessage) (json.RawMessage, error)

// Types decodes stored events into their Go types.
type Types map[string]func(e Event) (Data, error)

// Register adds the type D. upcasters[i] converts schema version i+1 to i+2; a type
// that has never changed needs none. With upcasters, D must have a method
// SchemaVersion that returns the current version.
func Register[D Data](types Types, upcasters ...Upcaster) {
	var zero D

	if current := int(schemaOf(zero)); current != len(upcasters)+1 {
		panic(fmt.Sprintf("%s has schema version %d and %d upcasters, expected one upcaster fewer than the version", zero.EventType(), current, len(upcasters)))
	}

	types[zero.EventType()] = func(e Event) (Data, error) {
		if e.Schema > len(upcasters)+1 {
			return nil, fmt.Errorf("event %s of %s has schema version %d, this release supports up to %d: run a newer release", e.Type, e.Stream, e.Schema, len(upcasters)+1)
		}

		body := e.Data

		for i, upcast := range upcasters[e.Schema-1:] {
			next, err := upcast(body)
			if err != nil {
				return nil, fmt.Errorf("upcasting event %s of %s from schema version %d: %w", e.Type, e.Stream, e.Schema+i, err)
			}

			body = next
		}

		var data D
		if err := json.Unmarshal(body, &data); err != nil {
			return nil, fmt.Errorf("decoding event %s of %s: %w", e.Type, e.Stream, err)
		}

		return data, nil
	}
}

// Decode returns the body of an event in its current schema version.
func (t Types) Decode(e Event) (Data, error) {
	decode, known := t[e.Type]
	if !known {
		return nil, fmt.Errorf("event %s of %s has an unknown type", e.Type, e.Stream)
	}

	return decode(e)
}

func schemaOf(data Data) int16 {
	if versioned, ok := data.(interface{ SchemaVersion() int }); ok {
		return int16(versioned.SchemaVersion()) //nolint:gosec // versions are small
	}

	return 1
}
