package event

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Limits on a payload, checked before it is decoded.
const (
	// MaxPayload is the maximum size of a payload in bytes.
	MaxPayload = 1 << 20
	// MaxDepth is the maximum nesting of objects and arrays.
	MaxDepth = 64
)

// Decode parses and validates the JSON payload of a message. It ignores unknown
// fields. Field names are case-sensitive and must not repeat. Errors are rejections
// (see [Reject]) that name the field and the expected value.
func Decode[P Payload](data []byte) (P, error) {
	var p P

	if err := CheckShape(data); err != nil {
		return p, err
	}

	if err := Unmarshal(data, &p); err != nil {
		return p, RejectAs(ReasonMalformed, err)
	}

	if err := p.Validate(); err != nil {
		return p, RejectAs(ReasonInvalid, flatten(err))
	}

	return p, nil
}

// byteOrderMark is the prefix that some producers and Windows editors add to JSON.
const byteOrderMark = "\xef\xbb\xbf"

// TrimMark removes a byte order mark, which parsers may ignore (RFC 8259, section
// 8.1).
func TrimMark(data []byte) []byte { return bytes.TrimPrefix(data, []byte(byteOrderMark)) }

// Unmarshal parses JSON into v as Decode does, without validating it.
func Unmarshal(data []byte, v any) error {
	data = TrimMark(data)

	err := json.Unmarshal(data, v)
	if refusedNumber(err) {
		err = json.Unmarshal(data, v, wholeNumbers)
	}

	if err != nil {
		return explain(err)
	}

	return nil
}

// Encode validates a payload and returns its JSON.
func Encode(p Payload) ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("encoding payload of %s: %w", p.Topic(), flatten(err))
	}

	if err := Storable(p.Key()); err != nil {
		return nil, fmt.Errorf("encoding payload of %s: its key %w", p.Topic(), err)
	}

	data, err := json.Marshal(p, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encoding payload of %s: %w", p.Topic(), err)
	}

	if len(data) > MaxPayload {
		return nil, fmt.Errorf("encoding payload of %s: has %d bytes, expected at most %d", p.Topic(), len(data), MaxPayload)
	}

	return data, nil
}

// CheckShape returns a rejection unless a payload has a size and a depth that Decode
// accepts. It does not check that the payload is JSON.
func CheckShape(data []byte) error {
	switch {
	case len(data) == 0:
		return RejectAs(ReasonMalformed, errors.New("payload: is empty, expected a JSON object"))
	case len(data) > MaxPayload:
		return RejectAs(ReasonTooLarge, fmt.Errorf("payload: has %d bytes, expected at most %d", len(data), MaxPayload))
	case depth(data) > MaxDepth:
		return RejectAs(ReasonMalformed, fmt.Errorf("payload: nests deeper than %d levels", MaxDepth))
	}

	return nil
}

// depth returns the nesting depth of data, counting up to MaxDepth+1. The result is
// meaningless for malformed JSON, which the decoder rejects anyway.
func depth(data []byte) int {
	var level, deepest int

	inString := false

	for i := 0; i < len(data) && deepest <= MaxDepth; i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			level++
			deepest = max(deepest, level)
		case c == '}' || c == ']':
			level--
		}
	}

	return deepest
}

// Limits on a number in jsonb, well within Postgres's: numeric has at most 131072
// digits before the decimal point and 16383 after it.
const (
	maxDigits   = 1000
	maxExponent = 1000
)

// CheckStorable returns an error if Postgres cannot store valid JSON as jsonb because
// it contains U+0000 or absurdly large numbers. Call it before storing JSON from a
// message; otherwise the statement fails for the whole batch.
func CheckStorable(data []byte) error {
	inString := false

	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			if bytes.HasPrefix(data[i:], []byte(`\u0000`)) {
				return errors.New("contains the character U+0000")
			}

			i++ // skip the escaped character
		case c == '"':
			inString = !inString
		case inString:
		case c >= '0' && c <= '9':
			number := numberAt(data[i:])
			if !fits(number) {
				return fmt.Errorf("contains the number %.20s..., expected at most %d digits and exponents from -%d to %d",
					number, maxDigits, maxExponent, maxExponent)
			}

			i += len(number) - 1
		}
	}

	return nil
}

// numberAt returns the number at the start of data, without its sign.
func numberAt(data []byte) []byte {
	end := bytes.IndexFunc(data, func(r rune) bool { return !strings.ContainsRune("0123456789.eE+-", r) })
	if end < 0 {
		return data
	}

	return data[:end]
}

func fits(number []byte) bool {
	digits, exponent := number, []byte(nil)
	if e := bytes.IndexAny(number, "eE"); e >= 0 {
		digits, exponent = number[:e], number[e+1:]
	}

	if len(digits) > maxDigits {
		return false
	}

	if len(exponent) == 0 {
		return true
	}

	n, err := strconv.Atoi(string(exponent))

	return err == nil && n >= -maxExponent && n <= maxExponent
}

// explain converts a decoder error to one that names the field and the expected
// value.
func explain(err error) error {
	if semantic, ok := errors.AsType[*json.SemanticError](err); ok {
		if semantic.Err != nil {
			return fmt.Errorf("%s: %w", path(semantic.JSONPointer), semantic.Err)
		}

		return fmt.Errorf("%s: is a JSON %s, expected %s",
			path(semantic.JSONPointer), kindName(semantic.JSONKind), typeName(semantic.GoType))
	}

	if syntactic, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return fmt.Errorf("%s: not valid JSON at byte %d: %w",
			path(syntactic.JSONPointer), syntactic.ByteOffset, syntactic.Err)
	}

	return fmt.Errorf("payload: not valid JSON: %w", err)
}

// path formats a JSON pointer the way Validate names fields: order.items[0].quantity.
func path(p jsontext.Pointer) string {
	var b strings.Builder

	for token := range p.Tokens() {
		switch {
		case token != "" && strings.Trim(token, "0123456789") == "":
			fmt.Fprintf(&b, "[%s]", token)
		case !Printable(token):
			fmt.Fprintf(&b, "[%+q]", shortened(token))
		case b.Len() > 0:
			b.WriteString("." + token)
		default:
			b.WriteString(token)
		}
	}

	if b.Len() == 0 {
		return "payload"
	}

	return b.String()
}

func kindName(k jsontext.Kind) string {
	switch k {
	case '{':
		return "object"
	case '[':
		return "array"
	case '"':
		return "string"
	case '0':
		return "number"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	default:
		return "value"
	}
}

func typeName(t reflect.Type) string {
	if t == nil {
		return "another type"
	}

	switch t.Kind() { //nolint:exhaustive // the remaining kinds share a name
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "an array"
	case reflect.Pointer:
		return typeName(t.Elem())
	default:
		return "an object"
	}
}

// flatten formats joined errors on one line.
func flatten(err error) error {
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}
