package failed

import (
	"encoding/json"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// The examples are those of RFC 7396, appendix A, with an object as the target.
func TestMergePatchesOfTheRFC(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ target, patch, want string }{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	} {
		if got, err := mergePatch([]byte(c.target), []byte(c.patch)); string(got) != c.want || err != nil {
			t.Errorf("%s with %s: got %s, %v; expected %s", c.target, c.patch, got, err, c.want)
		}
	}
}

func TestAPatchKeepsTheOrderOfMembersAndTheDigitsOfNumbers(t *testing.T) {
	t.Parallel()

	const target = `{"z":12345678901234567890.10,"a":{"y":1.0,"<b>":2e0},"m":[1,2],"z":0.30}`

	got, err := mergePatch([]byte(target), []byte(`{"a":{"<b>":null,"new":1.50},"m":[3]}`))
	if want := `{"a":{"y":1.0,"new":1.50},"m":[3],"z":0.30}`; string(got) != want || err != nil {
		t.Errorf("got %s, %v; expected %s", got, err, want)
	}

	for _, wrong := range []string{``, `{`, `[1]`, `"text"`, `null`, `{"a":1} {}`} {
		if _, err := mergePatch([]byte(wrong), []byte(`{}`)); err == nil {
			t.Errorf("%s was patched", wrong)
		}
	}
}

// values generates JSON values that encoding/json reads as nested maps.
func values(depth int) *rapid.Generator[any] {
	choices := []*rapid.Generator[any]{
		rapid.Just[any](nil), rapid.Float64Range(-9, 9).AsAny(), rapid.SampledFrom([]string{"", "a", "ä\"\\"}).AsAny(), rapid.Bool().AsAny(),
	}

	if depth > 0 {
		choices = append(choices, objects(depth-1).AsAny(), rapid.SliceOfN(values(depth-1), 0, 2).AsAny())
	}

	return rapid.OneOf(choices...)
}

func objects(depth int) *rapid.Generator[map[string]any] {
	return rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c.d", "0", ""}), values(depth), 0, 4)
}

// merged is the pseudo-code of RFC 7396, section 2.
func merged(target, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}

	object, ok := target.(map[string]any)
	if !ok {
		object = map[string]any{}
	}

	for name, value := range changes {
		if value == nil {
			delete(object, name)
		} else {
			object[name] = merged(object[name], value)
		}
	}

	return object
}

func TestMergePatchesFollowTheRFC(t *testing.T) {
	t.Parallel()

	rapid.Check(t, func(t *rapid.T) {
		encode := func(value any) []byte {
			text, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}

			return text
		}
		decode := func(text []byte) (value any) {
			if err := json.Unmarshal(text, &value); err != nil {
				t.Fatalf("%s: %v", text, err)
			}

			return value
		}

		target, patch := encode(objects(3).Draw(t, "target")), encode(objects(3).Draw(t, "patch"))

		got, err := mergePatch(target, patch)
		if err != nil {
			t.Fatal(err)
		}

		if want := merged(decode(target), decode(patch)); !reflect.DeepEqual(decode(got), want) {
			t.Errorf("%s with %s: got %s, expected %s", target, patch, got, encode(want))
		}
	})
}

// FuzzMergePatch compares the patch of any two texts with the pseudo-code of the RFC.
func FuzzMergePatch(f *testing.F) {
	f.Add(`{"a":{"b":1},"c":[{}]}`, `{"a":{"b":null,"d":2e0},"c":null}`)
	f.Add(` { "a" : { } } `, `{"a": {"b" : null } }`)
	f.Add(`{"a":1,"a":2}`, `{"\u0061":null}`)
	f.Fuzz(func(t *testing.T, target, patch string) {
		got, err := mergePatch([]byte(target), []byte(patch))

		var object, changes map[string]any
		if json.Unmarshal([]byte(target), &object) != nil || json.Unmarshal([]byte(patch), &changes) != nil || object == nil || changes == nil {
			if err == nil {
				t.Fatalf("%q with %q: got %q, expected an error", target, patch, got)
			}

			return
		}

		var value any
		if err != nil || json.Unmarshal(got, &value) != nil {
			t.Fatalf("%q with %q: got %q, %v", target, patch, got, err)
		}

		if want := merged(object, changes); !reflect.DeepEqual(value, want) {
			t.Errorf("%q with %q: got %q, expected %v", target, patch, got, want)
		}
	})
}
