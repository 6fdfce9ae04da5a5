package console

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Step is a step between two states of a thing. From is empty for a new thing.
type Step struct{ From, To string }

// stateChart is a state diagram, from top to bottom, with the path that was taken.
type stateChart struct {
	Width, Height int
	Nodes         []stateNode
	Edges         []stateEdge
	// Words says what the diagram shows.
	Words string
}

type stateNode struct {
	Name, Class string
	X, Y        int
}

type stateEdge struct {
	Path, Class string
	// Labels are the versions that took the step, at X and Y.
	Label string
	X, Y  int
}

// Measures of a state diagram.
const (
	stateWidth  = 156
	stateHeight = 34
	stateGap    = 14
	layerGap    = 46
	stateWidest = 416 // above it, a diagram is made smaller on phones
)

// slot is a place in a layer: of a state, or of a step that passes through.
type slot struct {
	name string
	step *Step
	from float64
}

func (s slot) width() float64 {
	if s.step != nil {
		return stateGap
	}

	return stateWidth
}

// newStateChart draws the steps that are possible, and marks those of path, which are the
// states after each version.
func newStateChart(steps []Step, path []string) stateChart {
	steps = slices.DeleteFunc(slices.Clone(steps), func(s Step) bool { return s.From == s.To })
	layers := layered(steps)
	chart := stateChart{}

	for _, layer := range layers {
		width := 0.0
		for _, s := range layer {
			width += s.width() + stateGap
		}

		chart.Width = max(chart.Width, int(width-stateGap))
	}

	chart.Width += 2 * stateGap
	chart.Height = stateGap + len(layers)*(stateHeight+layerGap) - layerGap + stateGap
	at := map[string][2]int{}  // the middle of the top of each state
	via := map[Step][][2]int{} // where steps pass through layers

	for i, layer := range layers {
		width := -float64(stateGap)
		for _, s := range layer {
			width += s.width() + stateGap
		}

		x, y := (float64(chart.Width)-width)/2, stateGap+i*(stateHeight+layerGap)

		for _, s := range layer {
			middle := int(x + s.width()/2)
			if s.step != nil {
				via[*s.step] = append(via[*s.step], [2]int{middle, y})
			} else {
				at[s.name] = [2]int{middle, y}
				chart.Nodes = append(chart.Nodes, stateNode{Name: s.name, X: middle - stateWidth/2, Y: y, Class: stateNodeClass(s.name, path)})
			}

			x += s.width() + stateGap
		}
	}

	taken := map[Step][]string{}
	for i := 1; i < len(path); i++ {
		step := Step{path[i-1], path[i]}
		taken[step] = append(taken[step], fmt.Sprint(i+1))
	}

	for _, s := range steps {
		if s.From != "" {
			chart.Edges = append(chart.Edges, newStateEdge(at[s.From], via[s], at[s.To], taken[s]))
		}
	}

	// Those that were taken are drawn last, above the others.
	slices.SortStableFunc(chart.Edges, func(a, b stateEdge) int { return cmp.Compare(len(a.Label), len(b.Label)) })

	if len(path) > 0 {
		chart.Words = "Path taken: " + strings.Join(slices.Compact(slices.Clone(path)), ", then ") + "."
	}

	return chart
}

func stateNodeClass(name string, path []string) string {
	switch {
	case len(path) > 0 && path[len(path)-1] == name:
		return "current"
	case slices.Contains(path, name):
		return "visited"
	default:
		return "other"
	}
}

func newStateEdge(from [2]int, via [][2]int, to [2]int, versions []string) stateEdge {
	x, y := from[0], from[1]+stateHeight

	var path strings.Builder

	fmt.Fprintf(&path, "M%d %d", x, y)

	for _, next := range append(via, to) {
		fmt.Fprintf(&path, " C%d %d %d %d %d %d", x, y+layerGap/2, next[0], next[1]-layerGap/2, next[0], next[1])
		x, y = next[0], next[1]

		if next != to {
			fmt.Fprintf(&path, " v%d", stateHeight)
			y += stateHeight
		}
	}

	e := stateEdge{Path: path.String(), Class: "other", X: (from[0] + append(via, to)[0][0]) / 2, Y: from[1] + stateHeight + layerGap/2}
	if len(versions) > 0 {
		e.Class, e.Label = "taken", strings.Join(versions, ", ")
	}

	return e
}

// layered assigns each state to a layer below all that lead to it, with a slot for each
// step that passes through a layer, and sorts layers so that few steps cross.
func layered(steps []Step) [][]slot {
	depth := map[string]int{}

	var names []string

	for range steps { // the longest path has no more steps than that
		for _, s := range steps {
			if _, known := depth[s.To]; !known {
				names = append(names, s.To)
				depth[s.To] = 0
			}

			if s.From != "" {
				depth[s.To] = min(max(depth[s.To], depth[s.From]+1), len(steps))
			}
		}
	}

	layers := make([][]slot, 0, len(names))

	put := func(i int, s slot) {
		for len(layers) <= i {
			layers = append(layers, nil)
		}

		layers[i] = append(layers[i], s)
	}

	for _, name := range names {
		put(depth[name], slot{name: name})
	}

	for i := range steps {
		if s := steps[i]; s.From != "" {
			for d := depth[s.From] + 1; d < depth[s.To]; d++ {
				put(d, slot{name: s.To, step: &steps[i]})
			}
		}
	}

	for i := 1; i < len(layers); i++ {
		for j, s := range layers[i] {
			layers[i][j].from = s.above(layers[i-1], steps)
		}

		slices.SortStableFunc(layers[i], func(a, b slot) int { return cmp.Compare(a.from, b.from) })
	}

	return layers
}

// above returns the mean place, in the layer above, of what leads to a slot.
func (s slot) above(layer []slot, steps []Step) float64 {
	sum, n := 0.0, 0.0

	for place, other := range layer {
		leads := other.step != nil && s.name == other.step.To && (s.step == nil || s.step == other.step)
		if other.step == nil {
			leads = slices.ContainsFunc(steps, func(step Step) bool {
				return step.From == other.name && step.To == s.name && (s.step == nil || *s.step == step)
			})
		}

		if leads {
			sum, n = sum+float64(place), n+1
		}
	}

	if n == 0 {
		return float64(len(layer))
	}

	// A step that passes through stays beside the states.
	if s.step != nil {
		return sum/n + float64(len(layer))
	}

	return sum / n
}
