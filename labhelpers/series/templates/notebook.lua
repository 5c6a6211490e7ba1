-- A notebook as pandoc reads it, made into a page (HTML) or into a chapter of a PDF (Typst).
-- Metadata: notebook (its name, which begins every id), pages (number -> name of a notebook),
-- code (keep it in the PDF).
local pdf, said = FORMAT == "typst", pandoc.utils.stringify
local name, pages, known, code = "", {}, {}, false
local WIDE = 1000  -- pixels of a figure that fills a line of the PDF
local ALLOWED = {}
for tag in ("details summary figure figcaption audio br sub sup b i em strong pre"):gmatch("%a+") do
  ALLOWED[tag] = true
end

local function html(text) return pandoc.RawBlock("html", text) end
local function read(text) return pandoc.read(text, "commonmark_x-raw_html").blocks end
local function anchor(text) return name .. "-" .. text:lower():gsub("[.,:;()?!’“”]", "") end

-- HTML from a cell; tags beyond the harmless ones become text.
local function safe(text)
  text = text:gsub("<(/?)(%a*)([^>]*)>?", function(slash, tag, rest)
    local odd = rest:lower():find("[%s/]on%a+%s*=") or rest:lower():find("javascript:")
    if not ALLOWED[tag:lower()] or odd then return "&lt;" .. slash .. tag .. rest .. "&gt;" end
  end)
  return (text:gsub("<pre>", '<pre tabindex="0">'))
end

-- A picture with its caption; in the PDF too with the text for those who cannot see it.
local function figure(image)
  local alt, caption = image.attributes.alt or "", image.attributes.caption or ""
  if not pdf then
    image.src = pandoc.mediabag.make_data_uri(pandoc.mediabag.fetch(image.src))
    image.attributes.caption = nil
    local zoom = html('<button type="button" class="zoom" title="Enlarge">')
    return pandoc.Figure({ zoom, pandoc.Plain(image), html("</button>") }, read(caption))
  end
  local share = math.min(100, 100 * (tonumber(image.attributes.width) or 700) / WIDE)
  local text = alt:gsub('[\\"]', "\\%0"):gsub("%s+", " ")
  local call = '#figure(picture("%s", "%s", %.0f%%), caption: ['
  local inlines = pandoc.utils.blocks_to_inlines(read(caption))
  inlines:insert(1, pandoc.RawInline("typst", call:format("media/" .. image.src, text, share)))
  inlines:insert(pandoc.RawInline("typst", "])"))
  return pandoc.Para(inlines)
end

-- A table of pandas: one header row, numbers to the right.
local function tidy(frame)
  local head, body = frame.head.rows, frame.bodies[1] and frame.bodies[1].body or {}
  if #head > 1 and said(head[1].cells[1].contents) == "" then
    head[1].cells[1] = head[2].cells[1]
    head = { head[1] }
  end
  frame.head.rows = head
  for column, spec in ipairs(frame.colspecs) do
    local numbers = #body > 0
    for _, row in ipairs(body) do
      local text = row.cells[column] and said(row.cells[column].contents) or "no"
      numbers = numbers and text:match("^[%s%d.,%%/+e%[%]()±–−-]*$")
    end
    frame.colspecs[column] = { numbers and "AlignRight" or "AlignLeft", spec[2] }
  end
  return frame
end

-- A long printed text as its ends: on paper nobody scrolls.
local function ends(text)
  local lines = pandoc.List()
  for line in (text .. "\n"):gmatch("(.-)\n") do lines:insert(line) end
  local left_out = #lines - 10
  if left_out < 5 then return text end
  lines = lines:filter(function(_, i) return i <= 5 or i > left_out + 5 end)
  lines:insert(6, ("… %d lines more in the HTML report …"):format(left_out))
  return table.concat(lines, "\n")
end

-- What a cell printed or showed.
local function output(block)
  if block.t == "CodeBlock" then
    block.text = pdf and ends(block.text) or block.text
  elseif block.t == "Para" and block.content[1].t == "Image" then
    return { figure(block.content[1]) }
  elseif block.t == "RawBlock" and block.format == "markdown" then
    return read(block.text)
  elseif block.t == "RawBlock" and block.text:find("<table") then
    local blocks = pandoc.Blocks(pandoc.read(block.text, "html+tex_math_dollars").blocks)
    return blocks:filter(function(one) return one.t == "Table" end):map(tidy)
  elseif block.t == "RawBlock" and pdf then
    local log = block.text:match('class="epochs"><summary>(.-)</summary>')
    local sound = block.text:find("<audio") and "(The sound is in the HTML report.)"
    return { log and pandoc.CodeBlock(log) or pandoc.Para(pandoc.Emph(sound or "")) }
  elseif block.t == "RawBlock" then
    return { html(safe(block.text)) }
  end
  return { block }
end

local function cell(div)
  local tags = div.attributes.tags or ""
  div.attributes, div.identifier = {}, name .. "-" .. div.identifier
  for _, tag in ipairs({ "answer", "summary" }) do
    if tags:find('"' .. tag .. '"', 1, true) then div.classes:insert(tag) end
  end
  if div.classes:includes("code") then
    local source = div.content[1]
    local title = tags:find('"setup"', 1, true) and "Set-up and parameters" or "Code"
    local fold = '<details class="code"><summary>' .. title .. "</summary>"
    local shown = pdf and { code and source or nil } or { html(fold), source, html("</details>") }
    div.content:remove(1)
    div.content = pandoc.Blocks(shown) .. div.content
    return div
  end
  div = div:walk({
    RawBlock = function(raw) return html(safe(raw.text)) end,
    RawInline = function(raw) return pandoc.RawInline("html", safe(raw.text)) end,
  })
  -- Alone in a block of its own, a heading would not stay with what follows.
  local alone = #div.content == 1 and div.content[1].t == "Header"
  return pdf and alone and div.content or div
end

-- "notebook 05" and "step 5" lead there.
local function mentions(inlines)
  local made = pandoc.List()
  for i, inline in ipairs(inlines) do
    local word = i > 2 and inlines[i - 1].t == "Space" and inlines[i - 2].text or ""
    word = word:lower():gsub("^%p+", "")
    local number, rest = (inline.text or ""):match("^(.-)(%p*)$")
    local there = number and (pages[number] or pages[number:match("^%d+") or ""])
    local meant = word == "notebook" or word == "notebooks" or word == "step"
    if inline.t == "Str" and meant and there and there ~= name then
      made:insert(pandoc.Link(number, there .. ".ipynb"))
      made:insert(pandoc.Str(rest))
    else
      made:insert(inline)
    end
  end
  return made
end

local function link(element)
  local there, place = element.target:match("^([%w_]+)%.ipynb#?(.*)$")
  local inside = element.target:match("^#(.+)$")
  if inside then
    element.target = "#" .. anchor(inside)
  elseif there and not known[there] then
    return element.content
  elseif there then
    local id = place ~= "" and there .. "-" .. anchor(place):sub(#name + 2) or there
    element.target = pdf and "#" .. id or there .. ".html" .. (place ~= "" and "#" .. id or "")
  end
  return element
end

function Pandoc(doc)
  local meta = doc.meta
  name, code = said(meta.notebook or ""), meta.code == true
  for number, page in pairs(meta.pages or {}) do
    pages[number] = said(page)
    known[said(page)] = true
  end
  doc = doc:walk({ Div = function(div)
    if div.classes:includes("cell") then return cell(div) end
    if div.classes:includes("output") then
      local blocks = pandoc.Blocks({})
      for _, block in ipairs(div.content) do blocks:extend(output(block)) end
      div.content, div.attributes = blocks, {}
      return div
    end
  end })
  local function stop(element) return element, false end
  doc = doc:walk({ traverse = "topdown", Inlines = mentions, Link = stop, Header = stop })
  return doc:walk({
    Link = link,
    Header = function(header)
      header.identifier = header.level == 1 and name or anchor(header.identifier)
      return header
    end,
    Math = function(math)
      if pdf or math.mathtype == "InlineMath" then return nil end
      return pandoc.Span(math, pandoc.Attr("", { "formula" }, { tabindex = "0" }))
    end,
    CodeBlock = function(block)
      block.attributes.tabindex = "0"
      return block
    end,
    Table = function(frame)
      if not pdf then return pandoc.Div(frame, pandoc.Attr("", { "table" }, { tabindex = "0" })) end
      for i, spec in ipairs(frame.colspecs) do
        if spec[1] == "AlignDefault" then frame.colspecs[i] = { "AlignLeft", spec[2] } end
      end
      return frame
    end,
  })
end
